"""Training: STEC, its data, the recipe."""
