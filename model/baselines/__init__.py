"""The models that the paper compares STEC with: one file a model. See README.md."""
