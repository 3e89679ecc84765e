"""Pooling of windows to one row per recording."""
