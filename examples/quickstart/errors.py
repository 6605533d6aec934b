"""Errors of the preparation of the quick start. prepare.py prints the message and exits with 1.

PrepareError            the folder or the environment
├── PackageError        a package is not available in its pinned version
├── SourceError         the sentences differ from those of their pinned version
└── CheckpointError     a checkpoint does not load completely, or its results make no sense
"""


class PrepareError(Exception):
    """The message names the object, its value, the expectation and the remedy."""


class PackageError(PrepareError):
    pass


class SourceError(PrepareError):
    pass


class CheckpointError(PrepareError):
    pass
