"""The export commands. As in model/cli, main() imports the modules that do the work, so that `--help` is fast."""
