"""What to do next for one chain: pure functions of what is observed."""
