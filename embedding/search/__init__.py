"""The stored windows that are nearest to a clip, or to one of themselves."""
