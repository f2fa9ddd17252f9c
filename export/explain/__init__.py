"""Explaining a model's predictions."""
