"""Placement and sizes of a run's work: CPUs and GPUs per stage, batches, shards, tasks, legs. No Ray."""
