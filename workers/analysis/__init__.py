"""Computes on stored embeddings: tags, duplicates, a map. No image is read again."""
