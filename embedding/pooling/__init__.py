"""Windows to one row per recording."""
