"""What a person can be told when the quick start cannot be prepared; prepare.py prints the message and ends with 1.

PrepareError            the folder or the environment
├── PackageError        a package could not be had as pinned
├── SourceError         the sentences are not what their pinned version held
└── CheckpointError     a checkpoint does not load whole, or loads and gives nonsense
"""


class PrepareError(Exception):
    """The message says what, what was got, what was expected and what to do."""


class PackageError(PrepareError):
    pass


class SourceError(PrepareError):
    pass


class CheckpointError(PrepareError):
    pass
