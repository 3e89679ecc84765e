"""Tables that all stages share: recordings, windows, batches, targets, failures, vectors."""
