"""The client of the fork server: starts trainers, and watches over them as subprocess.Popen does over a child."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

SERVER = (sys.executable, "-P", "-m", "distillchain_trainer.launch.fork_server")
LOST_S = 0.1  # between two looks whether a trainer without its server still runs


class ForkedTrainer:
    """One trainer. Methods and attributes are those of subprocess.Popen.

    Raises: ConnectionError when the server ends before it has started the trainer.
    """

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._received = b""
        self._is_lost = False
        self.pid = 0
        self.returncode: int | None = None
        while not self.pid:
            self._receive(None)
            if self._is_lost:
                raise ConnectionError("the fork server ended before it started the trainer")

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while the trainer runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Raises: subprocess.TimeoutExpired."""
        until = None if timeout is None else time.monotonic() + timeout
        while self.returncode is None:
            left_s = None if until is None else max(0.0, until - time.monotonic())
            self._receive(left_s)
            if self.returncode is None and until is not None and time.monotonic() >= until:
                raise subprocess.TimeoutExpired(SERVER, timeout or 0.0)
        return self.returncode

    def terminate(self) -> None:
        """Asks the trainer to save its state and to exit."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """Ends the trainer at once."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        # The server alone knows whether the process id still is the trainer's.
        with contextlib.suppress(OSError):
            self._channel.sendall(json.dumps({"signal": int(number)}).encode() + b"\n")
        if self._is_lost and self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def _receive(self, timeout_s: float | None) -> None:
        if self._is_lost:
            time.sleep(LOST_S if timeout_s is None else min(timeout_s, LOST_S))
            self._look_for_lost()
            return
        if not select.select([self._channel], [], [], timeout_s)[0]:
            return
        try:
            content = self._channel.recv(4096)
        except ConnectionError:
            content = b""
        self._is_lost = not content
        *lines, self._received = (self._received + content).split(b"\n")
        for line in lines:
            message = json.loads(line)
            self.pid = message.get("pid", self.pid)
            self.returncode = message.get("code")
        if self.returncode is not None:
            self._channel.close()

    def _look_for_lost(self) -> None:
        """The server was killed. Its trainers get SIGTERM then, and save their state."""
        try:
            state = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            state = "X"
        if state in "XZ":  # Z: it has ended, and nobody has asked for its exit code yet
            self.returncode = -signal.SIGKILL
            self._channel.close()


class ForkClient:
    """A fork server and the connection to it. Linux only.

    The server ends when the client is closed or dies. Its trainers then get SIGTERM.
    """

    def __init__(self) -> None:
        self._control, theirs = socket.socketpair()
        try:
            with theirs:
                self._server = subprocess.Popen(
                    [*SERVER, str(theirs.fileno())],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,  # Ctrl-C in the terminal must not reach trainers directly
                )
        except OSError:
            self._control.close()
            raise

    @property
    def server_pid(self) -> int:
        """The process id of the server."""
        return self._server.pid

    @property
    def is_running(self) -> bool:
        """Whether trainers can be started."""
        return self._server.poll() is None

    def start(self, environment: Mapping[str, str], *, stdout: int, stderr: int) -> ForkedTrainer:
        """A trainer with these variables and these descriptors as its output.

        Raises: OSError when the server is gone.
        """
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                socket.send_fds(self._control, [b"."], [theirs.fileno(), stdout, stderr])
            ours.sendall(json.dumps({"environment": dict(environment)}).encode() + b"\n")
            return ForkedTrainer(ours)
        except OSError:
            ours.close()
            raise

    def close(self) -> None:
        """Ends the server."""
        self._control.close()
        self._server.wait()
