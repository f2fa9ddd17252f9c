"""ctr-gate: whether a new model may replace the old one, measured on a later day of the joined log."""
