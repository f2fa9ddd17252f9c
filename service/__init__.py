"""The scoring service. Imports no training library."""
