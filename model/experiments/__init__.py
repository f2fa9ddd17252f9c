"""Running experiments: runs and their folders, seeds, sweeps, reports and comparisons."""
