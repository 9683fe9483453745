"""Networks, losses, and how errors are counted."""
