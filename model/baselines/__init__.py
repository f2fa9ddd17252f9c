"""The models that the paper compares STEC with, one file each. See README.md."""
