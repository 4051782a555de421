"""Routes about collections and their images. Searching is in `search`, indexing in `jobs`."""
