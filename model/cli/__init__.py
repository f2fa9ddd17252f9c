"""The training commands. Each module contains one command's arguments and messages.

A command imports the modules that do the work inside main(). Importing torch and polars takes seconds, and `--help` or
a mistyped flag should not have to wait for them.
"""
