"""Training and forward passes: data order, loop, precision, saved state."""
