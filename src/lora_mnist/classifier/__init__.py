"""What is trained: networks, losses, and how errors are counted."""
