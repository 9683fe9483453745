"""Computes predictions, and from them counts, scores, operating points and p-values."""
