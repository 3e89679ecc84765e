"""Arithmetic of a run's size: resources per stage, batches, shards, tasks. No Ray."""
