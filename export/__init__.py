"""A trained run -> a bundle that the service opens."""
