"""Chains on this machine: plan, processes, and what the user sees of a run."""
