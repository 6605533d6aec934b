"""Starts the trainer in a process that stops when its parent dies: `python -m distillchain_cli.child PARENT_PID`.

With `--ahead` it imports the trainer's libraries, and then waits for a line on stdin before it runs the stage.

When the parent dies, even by SIGKILL, the kernel sends SIGTERM, and the trainer saves its state and exits. The child
itself asks for this because `preexec_fn` is not safe in a process with threads, and the live view has one. Linux only:
elsewhere a trainer whose parent was killed finishes its stage.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import runpy
import signal
import sys

AHEAD = "--ahead"
TRAINER = "distillchain_trainer"
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main(arguments: list[str]) -> None:
    """Becomes the trainer; does not return."""
    parent_pid = int(arguments[0])
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent_pid:  # the parent died before the line above took effect
            sys.exit(1)
    if AHEAD not in arguments:
        os.execv(sys.executable, [sys.executable, "-m", TRAINER])  # noqa: S606 (no shell wanted)
    _import_libraries()
    # An empty answer means that the parent has closed its end: this stage is not wanted any more.
    if not sys.stdin.readline():
        sys.exit(0)
    sys.argv = [TRAINER]
    runpy.run_module(TRAINER, run_name="__main__", alter_sys=True)


def _import_libraries() -> None:
    """What every stage imports. An error is left to the stage, which reports it."""
    with contextlib.suppress(Exception):
        # First the variables that torch reads when it is imported, as the trainer itself does it.
        importlib.import_module(f"{TRAINER}.launch.ahead").import_libraries()


if __name__ == "__main__":
    main(sys.argv[1:])
