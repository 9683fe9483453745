"""What records become: a network, its classes and its preparation. No Hydra, no Lightning."""
