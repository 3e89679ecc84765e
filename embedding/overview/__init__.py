"""The page of an output: sums over all windows, pictures of a sample, and the text around them."""
