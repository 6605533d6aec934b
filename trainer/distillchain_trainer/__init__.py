"""One stage, start to end: teacher in, student out, committed to the store. Knows nothing of Kubernetes."""

__version__ = "0.1.0"
