"""Search for the stored windows nearest to a clip, or to another stored window."""
