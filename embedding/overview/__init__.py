"""What an output holds, to be looked at: sums over all windows, pictures of a sample, and the page they stand on."""
