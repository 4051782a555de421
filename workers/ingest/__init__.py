"""From a claimed chunk to stored embeddings: read, decode, embed, upsert, mark."""
