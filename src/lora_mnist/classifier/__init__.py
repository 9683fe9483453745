"""What records become: a network, its classes and its preparation. Plain Python."""
