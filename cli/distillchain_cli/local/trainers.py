"""Starts trainers: by a fork server where that works, which saves each the seconds of its imports, else one by one."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Protocol

from distillchain_api.wire.work_order import WorkOrder
from distillchain_cli.errors import RunFailed
from distillchain_cli.local.fork_client import ForkClient

# -P: a file of the user's folder, such as re.py, must not replace a module.
TRAINER = (sys.executable, "-P", "-m", "distillchain_cli.local.child")


class TrainerProcess(Protocol):
    """What subprocess.Popen and the fork client have in common."""

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""

    def wait(self, timeout: float | None = None) -> int:
        """Raises: subprocess.TimeoutExpired."""

    def terminate(self) -> None:
        """SIGTERM: it saves its state."""

    def kill(self) -> None:
        """SIGKILL."""


class Trainers:
    """Starts trainers that stop when this process dies.

    Args:
        client: of a fork server; None: every trainer imports its libraries itself.
    """

    def __init__(self, client: ForkClient | None) -> None:
        self._client = client

    def start(self, order: WorkOrder, environment: dict[str, str], *, stdout: int, stderr: int) -> TrainerProcess:
        """Raises: RunFailed."""
        # A launcher needs no libraries, and its ranks divide the CPUs in another way than one process does.
        if self._client is not None and order.parallelism.processes == 1 and self._client.is_running:
            with contextlib.suppress(OSError):  # the server was killed
                return self._client.start(environment, stdout=stdout, stderr=stderr)
        return _start(environment, stdout, stderr)


@contextlib.contextmanager
def open_trainers() -> Iterator[Trainers]:
    """Starts a fork server for the time of the block."""
    client = None
    if sys.platform == "linux":  # macOS has no fork that is safe after imports
        with contextlib.suppress(OSError):  # no process can be started; the first trainer reports why
            client = ForkClient()
    try:
        yield Trainers(client)
    finally:
        if client is not None:
            client.close()


def _start(environment: dict[str, str], stdout: int, stderr: int) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            [*TRAINER, str(os.getpid())],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,  # Ctrl-C in the terminal must not reach the trainer directly
        )
    except OSError as error:  # E2BIG when arguments and all variables together exceed the system's limit
        size_bytes = sum(len(name) + len(value) + 2 for name, value in environment.items())
        raise RunFailed(
            f"the trainer cannot be started: {error.strerror}; its environment variables have {size_bytes} bytes"
        ) from error
