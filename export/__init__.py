"""Exporting a trained run to a bundle that the service can open."""
