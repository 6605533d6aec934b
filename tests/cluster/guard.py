"""Sweeps up after a test process that was killed: `python -m cluster.guard SLOT TOKEN`, started by `cluster.node`.

etcd, kubelet and the others die with the process that started them, but containers have a supervisor of their own, and
a training pod would go on for hours. The guard holds one end of a pipe whose other end dies with that process.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from cluster.slot import Slot, try_slot
from cluster.waiting import POLL_S

LOCK_DEADLINE_S = 60  # kubelet and scheduler hold the slot until the kernel has killed them


def start_guard(slot: Slot, token: str) -> subprocess.Popen[bytes]:
    """Sweeps the slot when this process ends without having done so; closing `stdin` tells it to look now."""
    return subprocess.Popen(
        [sys.executable, "-m", "cluster.guard", str(slot.number), token],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=Path(__file__).parents[1],
        start_new_session=True,
    )


def main(number: int, token: str) -> None:
    sys.stdin.buffer.read()  # until the other end is closed, by hand or by death
    slot = Slot(number, None)
    give_up_at = time.monotonic() + LOCK_DEADLINE_S
    while slot.is_occupied_as(token) and time.monotonic() < give_up_at:
        if (ours := try_slot(number)) is not None:
            if ours.is_occupied_as(token):
                ours.sweep()
            ours.release()
            return
        time.sleep(POLL_S)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
