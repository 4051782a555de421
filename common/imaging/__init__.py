"""From bytes to the pixels that a model takes. Models are in `workers.embedding`."""
