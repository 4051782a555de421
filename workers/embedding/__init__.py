"""Embedders: CLIP on torch, and wrappers around an embedder. No other package imports torch."""
