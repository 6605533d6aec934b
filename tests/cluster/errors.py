"""What can go wrong with the cluster, in words that tell a person what to do next.

ClusterError
|- PrerequisiteMissing   the machine lacks something; the message names what brings it
|- DidNotHappen          a deadline passed; the message carries the state that was seen instead
|- ProcessDied           a part of the cluster ended by itself; the message carries the end of its log
`- CommandFailed         a command (kubectl, ip, ctr, ...) said no; the message carries what it said
"""

from __future__ import annotations

from collections.abc import Sequence


class ClusterError(RuntimeError):
    """The cluster could not do what was asked."""


class PrerequisiteMissing(ClusterError):
    """The machine lacks something."""


class DidNotHappen(ClusterError):
    """A condition was still false at its deadline."""


class ProcessDied(ClusterError):
    """A part of the cluster ended by itself."""


class CommandFailed(ClusterError):
    """A command ended with another code than 0."""

    def __init__(self, argv: Sequence[str], returncode: int, said: str) -> None:
        super().__init__(f"`{' '.join(argv)}` ended with {returncode}: {said.strip() or '(said nothing)'}")
        self.returncode = returncode
        self.said = said
