"""The training commands: one module for each, with its arguments and its messages.

A command imports the modules that do its work inside main(). Importing torch and polars takes seconds, and neither
`--help` nor a mistyped flag should wait for them.
"""
