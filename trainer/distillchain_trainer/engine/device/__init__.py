"""How a model computes on a device: numbers, compiled layers, division among GPUs."""
