"""STEC, the paper's model."""
