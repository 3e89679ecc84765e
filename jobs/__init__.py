"""What a person submits. Each module parses, calls the library and turns the outcome into an exit code."""
