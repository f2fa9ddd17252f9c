"""The scoring service. It imports no training library."""
