"""Detections: when and where a label occurs in the recordings of an output, from the scores of its windows."""
