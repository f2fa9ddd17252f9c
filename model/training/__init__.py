"""Training one model on one prepared log."""
