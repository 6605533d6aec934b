"""The folder that files are downloaded into until all of them are there. Knows no store.

It has a name of its own beside its place. If the command is stopped, it is deleted; if the command is killed, the next
download to that place deletes it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import signal
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

LOCK_FILE = "lock"
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def partial_folder(place: Path) -> Iterator[Path]:
    """A new folder beside `place`, which is deleted at the end. Raises: OSError when it cannot be created."""
    _delete_leftovers(place)
    part = place.with_name(f"{place.name}.part-{uuid.uuid4().hex}")
    with _deleted_when_stopped(part):
        part.mkdir()
        try:
            with _locked(part):
                yield part
        finally:
            shutil.rmtree(part, ignore_errors=True)


def _delete_leftovers(place: Path) -> None:
    """Deletes the folders of downloads to the same place that were killed."""
    name = re.compile(rf"{re.escape(place.name)}\.part-[0-9a-f]{{32}}")
    # A folder that cannot be listed can still take a new one.
    with contextlib.suppress(OSError):
        for part in place.parent.iterdir():
            if name.fullmatch(part.name) and _is_abandoned(part):
                shutil.rmtree(part, ignore_errors=True)


def _is_abandoned(part: Path) -> bool:
    # An OSError: another download holds the lock, or it is not known whether one does.
    with contextlib.suppress(OSError), (part / LOCK_FILE).open("r+b") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


@contextmanager
def _locked(part: Path) -> Iterator[None]:
    """Shows other downloads that this one is running. The lock of a killed process is free."""
    with (part / f"{LOCK_FILE}.new").open("wb") as lock:
        # Without locks, as on some network file systems, no download deletes the folder of another one.
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # It gets its name only now, so that nobody finds it unlocked before.
            Path(lock.name).rename(part / LOCK_FILE)
        yield


@contextmanager
def _deleted_when_stopped(part: Path) -> Iterator[None]:
    """Deletes the folder before a signal ends this process. Signals that are ignored, as under nohup, stay ignored."""

    def stop(number: int, _frame: FrameType | None) -> None:
        # An exception instead would wait until the threads have downloaded their files. The second time is for a file
        # that one of them adds meanwhile.
        shutil.rmtree(part, ignore_errors=True)
        shutil.rmtree(part, ignore_errors=True)
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    active = [number for number in STOPPING if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in active}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
