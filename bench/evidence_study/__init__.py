"""The parts of bench/evidence.py: inputs, chains, the order in which they run, and the table."""
