"""Clusters: groups of alike windows, found without labels."""

METHODS = ("kmeans", "hdbscan")
