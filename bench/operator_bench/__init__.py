"""What the measurements of the operator share: a real API server, an operator beside it, and objects in bulk."""
