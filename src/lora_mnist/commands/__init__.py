"""The five commands: one file each, to be read from top to bottom."""
