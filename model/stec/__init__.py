"""STEC, the model of the paper."""
