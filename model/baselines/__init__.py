"""The models that the paper compares STEC with, one per file. See README.md."""
