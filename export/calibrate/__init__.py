"""ctr-calibrate: fit a run's probabilities to later traffic, and measure the result."""
