"""Where the stages of a run work, on how much, and what they tell its driver. Ray, but for the arithmetic."""
