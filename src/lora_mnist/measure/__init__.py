"""Measures predictions: one loop with a forward pass, one table, all counts of it, and p-values."""
