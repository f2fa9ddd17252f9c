"""The scoring service. It does not import any training library."""
