"""Readers, the generated log, and prepare."""
