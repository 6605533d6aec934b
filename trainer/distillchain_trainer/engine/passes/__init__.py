"""Forward passes over encoded rows, and the stored outputs of teachers."""
