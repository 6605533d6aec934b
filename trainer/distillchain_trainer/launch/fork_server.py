"""Starts trainers by fork from a process that has imported torch and transformers, which takes each process seconds.

`python -m distillchain_trainer.launch.fork_server DESCRIPTOR`, for `distillchain run` alone. The first trainer is
forked without the libraries: a stage that is committed already does not need them. When it ends because it does, the
server imports them and forks it again. Nothing computes in this process, so no trainer inherits threads or CUDA.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import logging
import os
import selectors
import signal
import socket
import sys
import tempfile
import traceback
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from distillchain_trainer import libraries
from distillchain_trainer.launch.environment import set_up_environment
from distillchain_trainer.launch.leaving import leave
from distillchain_trainer.launch.process import main as run_trainer
from distillchain_trainer.signals import Signals
from distillchain_trainer.stage_warnings import StageWarnings

PR_SET_PDEATHSIG = 1  # linux/prctl.h
HELD = {signal.SIGTERM, signal.SIGINT, signal.SIGUSR1}  # would end a trainer that has no handlers yet
LIBRARIES_NEEDED = 79  # exit code of a trainer that was forked without them; no code of the contract
WITH_LIBRARIES = ("stage.run", "stage.prepare", "stage.compute", "stage.commit")
NVML_CHECK = "PYTORCH_NVML_BASED_CUDA_CHECK"  # torch then looks for GPUs without initializing CUDA
CUDA_DRIVER = "libcuda.so"  # loaded by whatever calls CUDA; a forked process cannot use CUDA then


@dataclass
class _Trainer:
    """A trainer that was asked for.

    Attributes:
        descriptors: its stdout and stderr.
        signals: that were sent to it.
    """

    channel: socket.socket
    descriptors: tuple[int, int]
    received: bytes = b""
    environment: dict[str, str] | None = None
    pid: int | None = None
    signals: list[int] = field(default_factory=list)


class _Server:
    def __init__(self, control: socket.socket, folder: Path) -> None:
        self._control = control
        self._folder = folder
        self._pid = os.getpid()
        self._trainers: list[_Trainer] = []
        self._are_loaded = False
        self._may_fork = True
        self._set_up: dict[str, str] = {}
        self._selector = selectors.DefaultSelector()
        self._ended, self._end = os.pipe()
        os.set_blocking(self._end, False)
        os.set_blocking(self._ended, False)

    def serve(self) -> None:
        """Until the client is gone. The trainers get SIGTERM when this process ends."""
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        signal.set_wakeup_fd(self._end)  # a byte for each signal, also between two calls of select
        self._selector.register(self._control, selectors.EVENT_READ)
        self._selector.register(self._ended, selectors.EVENT_READ)
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._control:
                    if not self._accept():
                        return
                elif key.fileobj == self._ended:
                    os.read(self._ended, 4096)
                    self._reap()
                else:
                    self._hear(key.data)

    def _accept(self) -> bool:
        _, descriptors, _, _ = socket.recv_fds(self._control, 1, 3)
        if len(descriptors) != 3:
            return False
        channel, stdout, stderr = descriptors
        trainer = _Trainer(socket.socket(fileno=channel), (stdout, stderr))
        self._trainers.append(trainer)
        self._selector.register(trainer.channel, selectors.EVENT_READ, trainer)
        return True

    def _hear(self, trainer: _Trainer) -> None:
        try:
            content = trainer.channel.recv(65_536)
        except ConnectionError:
            content = b""
        if not content:  # the client is gone
            self._selector.unregister(trainer.channel)
            return
        *lines, trainer.received = (trainer.received + content).split(b"\n")
        for line in lines:
            message: dict[str, Any] = json.loads(line)
            if "environment" in message:
                trainer.environment = message["environment"]
                self._fork(trainer)
            elif "signal" in message:
                trainer.signals.append(message["signal"])
                if trainer.pid is not None:
                    os.kill(trainer.pid, message["signal"])  # not reaped, so the process id is still its own

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for trainer in self._trainers:
                if trainer.pid == pid:
                    self._on_end(trainer, os.waitstatus_to_exitcode(status))
                    break

    def _on_end(self, trainer: _Trainer, code: int) -> None:
        trainer.pid = None
        if code == LIBRARIES_NEEDED:
            self._load(trainer)
            self._fork(trainer)
            return
        self._trainers.remove(trainer)
        with contextlib.suppress(OSError):  # the client is gone
            self._answer(trainer, {"code": code})
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(trainer.channel)
        trainer.channel.close()
        for descriptor in trainer.descriptors:
            os.close(descriptor)

    def _answer(self, trainer: _Trainer, message: dict[str, int]) -> None:
        trainer.channel.sendall(json.dumps(message).encode() + b"\n")

    def _load(self, trainer: _Trainer) -> None:
        """Imports what a stage computes with, once, in the environment of the first trainer that needs it."""
        if self._are_loaded:
            return
        self._are_loaded = True
        assert trainer.environment is not None
        # Their warnings belong into the log of the stage.
        os.dup2(trainer.descriptors[1], 2)
        os.environ.update(trainer.environment)
        logging.disable()  # the trainer itself warns of variables
        set_up_environment(self._folder, StageWarnings())
        logging.disable(logging.NOTSET)
        self._set_up = {name: value for name, value in os.environ.items() if name not in trainer.environment}
        os.environ[NVML_CHECK] = "1"
        gc.disable()
        try:
            libraries.import_libraries()
            for name in WITH_LIBRARIES:
                importlib.import_module(f"distillchain_trainer.{name}")
        except Exception:  # the trainer meets the same error, and answers with it
            traceback.print_exc()
        del os.environ[NVML_CHECK]
        gc.freeze()  # a collection in a trainer would copy the memory that it shares with this process
        self._may_fork = not uses_cuda()

    def _fork(self, trainer: _Trainer) -> None:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, HELD)
        pid = os.fork()
        if pid == 0:
            try:
                self._become(trainer)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)
        trainer.pid = pid
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        with contextlib.suppress(OSError):  # the client is gone
            self._answer(trainer, {"pid": pid})
        for number in trainer.signals:
            os.kill(pid, number)

    def _become(self, trainer: _Trainer) -> NoReturn:
        """In the new process: the trainer, as if it had been started by itself."""
        assert trainer.environment is not None
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        end_with(self._pid)
        for descriptor, source in enumerate(trainer.descriptors, start=1):
            os.dup2(source, descriptor)
        self._close_own()
        os.environ.clear()
        os.environ.update(self._set_up | trainer.environment)
        if not self._may_fork:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD - {signal.SIGUSR1})  # the trainer unblocks that one
            os.execv(sys.executable, [sys.executable, "-P", "-m", "distillchain_trainer"])  # noqa: S606 (no shell wanted)
        signals = Signals()
        signals.install()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD)
        gc.enable()
        if not self._are_loaded:
            libraries.instead = lambda: os._exit(LIBRARIES_NEEDED)
        leave(run_trainer([], signals))

    def _close_own(self) -> None:
        self._selector.close()
        self._control.close()
        os.close(self._ended)
        os.close(self._end)
        for trainer in self._trainers:
            trainer.channel.close()
            for descriptor in trainer.descriptors:
                os.close(descriptor)


def end_with(parent: int) -> None:
    """When the parent dies, this process gets SIGTERM: it saves its state and exits."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # the parent died before the line above took effect
        os._exit(1)


def uses_cuda(maps: Path = Path("/proc/self/maps")) -> bool:
    """Whether this process has loaded the driver of CUDA, after which a forked one cannot use it."""
    return CUDA_DRIVER in maps.read_text()


def main(arguments: list[str]) -> None:
    """Serves the client at the other end of a socket."""
    # numpy's threads for matrix products wait, and its library stops them before a fork.
    warnings.filterwarnings("ignore", message=".*multi-threaded, use of fork", category=DeprecationWarning)
    importlib.import_module("distillchain_trainer.stage.run")
    with tempfile.TemporaryDirectory(prefix="distillchain-", ignore_cleanup_errors=True) as folder:
        _Server(socket.socket(fileno=int(arguments[0])), Path(folder)).serve()
    leave(0)


if __name__ == "__main__":
    main(sys.argv[1:])
