"""Audio archives to embeddings, in the order the data flows.

``sources`` → ``decode`` (``audio``, ``windows``) → ``encoder`` (``models``) → ``store``; ``pipeline`` arranges
them with Ray Data and is the only module that imports Ray.
"""
