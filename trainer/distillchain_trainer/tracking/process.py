"""The process of one tracker, seen from the trainer: messages are written without waiting, and its end has a limit."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from distillchain_trainer.tracking.messages import Message, Setup

log = logging.getLogger(__name__)

ENVIRONMENT = {
    # MLflow's client itself waits for 120 s and tries again seven times. The trainer does not wait so long at its end.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_FILE_STORE": "true",  # MLflow 3 asks for it where `trackingUri` is a folder
    "GIT_PYTHON_REFRESH": "quiet",  # the image has no git
}
"""Settings of the clients, which read them when they are imported. The trainer's environment may replace them."""
FAULT_FILE = "fault"
"""Where the process of a tracker writes why it failed."""
LOG_FILE = "log"
FAULT_CHARS = 200  # a warning in status has room for about 300
PIPE_BYTES = 1 << 20  # what Linux allows without privileges: more than the points of a training
UNSENT_BYTES = 1 << 22  # what is kept for a tracker that does not read; beyond that it is given up
POLL_S = 0.02
KILLED_S = 1.0  # for a killed process to end
END_BYTES = 4096  # that are read of what a tracker has written, which has no limit


class TrackerProcess:
    """Sends messages to one tracker.

    In a process of its own, because the clients take seconds to import, start threads and handlers of their own, and
    wait for servers: a stage must neither fail nor wait for that.

    Args:
        name: as in the spec, for messages.
    """

    def __init__(self, name: str, setup: Setup) -> None:
        self.name = name
        self._folder = Path(setup.folder)
        self._unsent = bytearray()
        self._given_up = ""
        with (self._folder / LOG_FILE).open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "distillchain_trainer.tracking", setup.to_json()],
                stdin=subprocess.PIPE,
                stdout=output,  # not ours: stdout of the trainer has nothing but progress lines
                stderr=output,
                env=ENVIRONMENT | os.environ,
                start_new_session=True,  # so that it can be killed with the processes that a client starts
            )
        assert self._process.stdin is not None
        self._pipe = self._process.stdin.fileno()
        os.set_blocking(self._pipe, False)
        # Refused where the pods of one user have many pipes on a node. Values then wait in this process.
        with contextlib.suppress(OSError, AttributeError):
            fcntl.fcntl(self._pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)

    def send(self, message: Message) -> None:
        """Sends a message without waiting. Does nothing after a fault."""
        if self._given_up:
            return
        # A name may contain half of a surrogate pair, which UTF-8 cannot express.
        self._unsent += message.to_json().encode(errors="replace") + b"\n"
        self._write()
        if len(self._unsent) > UNSENT_BYTES:
            self._give_up("it does not take the values")

    def finish(self, deadline: float) -> str | None:
        """Waits for the tracker to take what was sent. Returns: why it did not take all; None: it did.

        Args:
            deadline: value of time.monotonic() at which the process is killed.
        """
        while not self._given_up and self._process.poll() is None:
            self._write()
            if not self._unsent and self._process.stdin is not None:
                self._process.stdin.close()
                self._process.stdin = None
            if time.monotonic() > deadline:
                self._give_up("its server did not take all values in time")
                break
            time.sleep(POLL_S)
        if self._process.stdin is not None:
            self._process.stdin.close()
            self._process.stdin = None
        return self._fault()

    def _write(self) -> None:
        if self._process.stdin is None:
            return
        try:
            while self._unsent:
                del self._unsent[: os.write(self._pipe, self._unsent[: 1 << 16])]
        except BlockingIOError:
            return  # the pipe is full: the rest is sent with the next message
        except OSError:
            self._give_up("its client has ended")

    def _give_up(self, why: str) -> None:
        self._given_up = why
        self._unsent.clear()
        # The whole session: a client may have started a process that uploads.
        with contextlib.suppress(OSError):
            os.killpg(self._process.pid, signal.SIGKILL)
        # Not for longer: a process that waits for a file system that is away ends only when that is back.
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(KILLED_S)

    def _fault(self) -> str | None:
        if not self._given_up and self._process.returncode == 0:
            return None
        # Its own words first: after a fault, the pipe breaks as well.
        why = self._end_of(FAULT_FILE) or self._given_up or f"its client ended with code {self._process.returncode}"
        log.debug("output of the tracker", extra={"tracker": self.name, "output": self._end_of(LOG_FILE)})
        return why if len(why) <= FAULT_CHARS else why[:FAULT_CHARS] + "..."

    def _end_of(self, name: str) -> str:
        """The end of a file of the tracker; empty if it cannot be read."""
        try:
            with (self._folder / name).open("rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - END_BYTES))
                return file.read().decode(errors="replace").strip()
        except OSError:
            return ""
