"""Training: models, data and experiments."""
