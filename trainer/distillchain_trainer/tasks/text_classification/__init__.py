"""Text classification: one or two texts to one class."""
