"""Recordings to windows."""
