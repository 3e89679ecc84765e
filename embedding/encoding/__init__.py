"""Encoding of windows to embeddings."""
