"""Training a model on a prepared log."""
