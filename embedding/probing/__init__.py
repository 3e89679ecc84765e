"""Linear probes: labels learnt from the vectors of an output, and measured on other recordings."""
