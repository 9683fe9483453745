"""The configuration: its keys, the command line, and the objects that it names."""
