"""What scripts/readme.py is made of."""
