"""Running experiments: runs, run folders, seeds, sweeps, reports and comparisons."""
