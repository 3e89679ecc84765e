"""Vocabulary of the stages: windows, batches, targets, failures, vectors."""
