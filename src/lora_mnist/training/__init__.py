"""What a run does: its session, its trainings, what a repair decides, and how it ends."""
