"""A run: its session, its trainings, the decisions of a repair, and its files."""
