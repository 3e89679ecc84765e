"""Windows to vectors."""
