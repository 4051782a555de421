"""Routes about collections and the images in them. Searching is in `search`, indexing in `jobs`."""
