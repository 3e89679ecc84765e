"""Inputs to recordings."""
