"""Starts the trainer in a process that stops when its parent dies: `python -m distillchain_cli.local.child PARENT_PID`.

When the parent dies, even by SIGKILL, the kernel sends SIGTERM, and the trainer saves its state and exits. The child
itself asks for this because `preexec_fn` is not safe in a process with threads, and the live view has one. Linux only:
elsewhere a trainer whose parent was killed finishes its stage.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main(arguments: list[str]) -> None:
    """Replaces this process with the trainer; does not return."""
    parent_pid = int(arguments[0])
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent_pid:  # the parent died before the line above took effect
            sys.exit(1)
    os.execv(sys.executable, [sys.executable, "-P", "-m", "distillchain_trainer"])  # noqa: S606 (no shell wanted)


if __name__ == "__main__":
    main(sys.argv[1:])
