"""What the project promises, tried hard: kills, faults, odd values, crowds and long processes."""
