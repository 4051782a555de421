"""Images: from the bytes of a file to the pixels for a model. Models are in `workers.embedding`."""
