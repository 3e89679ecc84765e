"""Vectors in the formats of other tools."""
