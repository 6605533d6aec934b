"""Errors of the test cluster. Each message says what to do next or shows the state that caused it.

ClusterError
|- PrerequisiteMissing   the machine lacks a program or a right; the message names the package or the remedy
|- DidNotHappen          a deadline passed; the message shows the state at that time
|- ProcessDied           a process of the cluster exited unexpectedly; the message shows the end of its log
`- CommandFailed         a command (kubectl, ip, ctr, ...) exited with an error; the message shows its output
"""

from __future__ import annotations

from collections.abc import Sequence


class ClusterError(RuntimeError):
    """An operation on the test cluster failed."""


class PrerequisiteMissing(ClusterError):
    """The machine lacks a program or a right that the cluster needs."""


class DidNotHappen(ClusterError):
    """A condition was still false at its deadline."""


class ProcessDied(ClusterError):
    """A process of the cluster exited unexpectedly."""


class CommandFailed(ClusterError):
    """A command exited with a code other than 0. `output` is what it printed."""

    def __init__(self, argv: Sequence[str], returncode: int, output: str) -> None:
        super().__init__(f"`{' '.join(argv)}` exited with {returncode}: {output.strip() or '(no output)'}")
        self.returncode = returncode
        self.output = output
