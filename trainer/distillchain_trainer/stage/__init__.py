"""One stage from work order to commit: prepare, compute, commit."""
