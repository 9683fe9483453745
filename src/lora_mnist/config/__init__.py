"""The configuration: its keys, what was typed, and the objects that it names."""
