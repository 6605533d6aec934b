"""The parts of bench/gpu.py: synthetic data and models, reference loops, our stages, and the table."""
