"""The terminal: arguments, messages, progress, exit codes."""
