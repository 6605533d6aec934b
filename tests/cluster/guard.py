"""Clean up after a test process that was killed: `python -m cluster.guard SLOT TOKEN`, started by `cluster.node`.

etcd, kubelet and the other servers die with the process that started them. Containers do not: each has a shim, and a
training pod would run on for hours. The guard reads from a pipe, and the kernel closes the pipe when that process ends.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from cluster.slot import Slot, try_slot
from cluster.waiting import POLL_S

LOCK_DEADLINE_S = 60  # kubelet and scheduler hold the slot's lock until the kernel has killed them


def start_guard(slot: Slot, token: str) -> subprocess.Popen[bytes]:
    """Start a process that sweeps the slot if this process ends without doing so. Close its `stdin` to end it."""
    return subprocess.Popen(
        [sys.executable, "-m", "cluster.guard", str(slot.number), token],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=Path(__file__).parents[1],
        start_new_session=True,
    )


def main(number: int, token: str) -> None:
    sys.stdin.buffer.read()  # blocks until the other end is closed, also by the kernel
    slot = Slot(number, None)
    give_up_at = time.monotonic() + LOCK_DEADLINE_S
    while slot.is_occupied_as(token) and time.monotonic() < give_up_at:
        if (locked := try_slot(number)) is not None:
            if locked.is_occupied_as(token):
                locked.sweep()
            locked.release()
            return
        time.sleep(POLL_S)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
