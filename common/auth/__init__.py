"""API keys, what their jobs may read, and rate limits. The HTTP side is in `api.auth`."""
