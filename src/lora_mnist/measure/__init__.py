"""What is counted: one loop with a forward pass, one table, every count of it, and chance."""
