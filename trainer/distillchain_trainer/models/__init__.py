"""Checkpoints and the models they hold."""
