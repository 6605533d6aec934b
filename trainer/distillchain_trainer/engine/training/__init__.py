"""The training loop of a student: order of rows, steps and their modes, saved states."""
