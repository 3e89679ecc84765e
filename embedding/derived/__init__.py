"""Rows derived from the windows of each recording, kept in step with the shards: pooled vectors, detections."""
