"""The trainer as a process: environment, signals, exit code and termination message."""
