"""A network with its classes and its preprocessing, built from records. No Hydra, no Lightning."""
