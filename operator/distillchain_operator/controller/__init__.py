"""A look at one chain: read, decide, change Jobs, write status."""
