"""Becomes the trainer, bound to the life of who started it: `python -m distillchain_cli.child PARENT_PID`.

When the parent dies, even by SIGKILL, the kernel sends SIGTERM and the trainer saves its state and ends. Done in the
child and not in `preexec_fn`, which is not safe in a process with threads (the live view has one). Linux only;
elsewhere a trainer whose parent was killed trains its stage to the end.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main(arguments: list[str]) -> None:
    """Never returns: the trainer takes over this process."""
    parent_pid = int(arguments[0])
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent_pid:  # it died before the line above
            sys.exit(1)
    os.execv(sys.executable, [sys.executable, "-m", "distillchain_trainer"])  # noqa: S606 (no shell wanted)


if __name__ == "__main__":
    main(sys.argv[1:])
