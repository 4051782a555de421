"""Keys, what they may read, and how often they may ask. HTTP is in `api.auth`."""
