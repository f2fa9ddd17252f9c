"""The training package: models, data and experiments."""
