"""A linear probe on stored vectors: what can be read off them with a manifest's labels."""
