"""From a trained run to a bundle that the service opens."""
