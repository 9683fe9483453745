"""What a person looks at: tables on the screen, and TensorBoard."""
