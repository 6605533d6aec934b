"""Start, watch and stop the processes of one folder, including those that a dead caller left behind.

Knows nothing of Kubernetes. Every start is recorded in processes.json beside the logs, as pid and start time. Another
process (`cluster down`, or the next run after a crash) can then stop exactly these processes, and never one that got
the same pid later.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from cluster.errors import PrerequisiteMissing, ProcessDied

# The kernel sends a child its death signal when the *thread* that forked it ends (prctl(2), PR_SET_PDEATHSIG). A caller
# may start a cluster from a short-lived thread, so this thread forks all children; it ends only with the process.
_forker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="cluster-forker")


@dataclass(frozen=True)
class Identity:
    """Identifies one process for good: the kernel reuses pids, but not together with the start time."""

    pid: int
    started_ticks: int

    def is_alive(self) -> bool:
        stat = _stat(self.pid)
        return stat is not None and stat.started_ticks == self.started_ticks and stat.state not in "ZX"


class Processes:
    """Named processes, each with a log in `directory`.

    Args:
        outlive_caller: if False, the kernel kills every process when this one ends, even by SIGKILL.
    """

    def __init__(self, directory: Path, *, outlive_caller: bool = False) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self._outlive_caller = outlive_caller
        self._record = directory / "processes.json"
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._identities = self._recorded()

    def start(
        self,
        name: str,
        argv: Sequence[str | Path],
        *,
        environment: Mapping[str, str] | None = None,
        pass_fds: Sequence[int] = (),
    ) -> None:
        """Start `name` with its output in <name>.log, in its own session so that Ctrl-C reaches only this process."""
        assert not self.is_running(name), name
        command = [str(word) for word in argv] if self._outlive_caller else _tied(argv)
        with self.log(name).open("ab") as log:
            child = _forker.submit(
                subprocess.Popen,
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=None if environment is None else dict(environment),
                pass_fds=tuple(pass_fds),
                cwd=self.directory,
                start_new_session=True,
            ).result()
        self._children[name] = child
        stat = _stat(child.pid)
        assert stat is not None  # a child stays in /proc until its parent waits for it
        self._identities[name] = Identity(child.pid, stat.started_ticks)
        self._write()

    def stop(self, name: str, *, grace_s: float = 10, by: signal.Signals = signal.SIGTERM) -> None:
        """Stop `name` and wait until it has exited; SIGKILL after `grace_s`. Does nothing if it has exited already."""
        identity = self._identities.get(name)
        if identity is not None and self.is_running(name):
            end(identity, grace_s=grace_s, by=by)
        if (child := self._children.pop(name, None)) is not None:
            child.wait()
        if self._identities.pop(name, None) is not None:
            self._write()

    def stop_all(self) -> None:
        """Stop all processes, the last started first."""
        for name in reversed(list(self._identities)):
            self.stop(name)

    def is_running(self, name: str) -> bool:
        if (child := self._children.get(name)) is not None and child.poll() is not None:
            return False
        identity = self._identities.get(name)
        return identity is not None and identity.is_alive()

    def pid(self, name: str) -> int:
        return self._identities[name].pid

    def names(self) -> list[str]:
        """The processes that were started and not stopped, in order of start. Some may have exited since."""
        return list(self._identities)

    def check(self, *names: str) -> None:
        """Raises: ProcessDied, with the end of its log, for the first process that is not running."""
        for name in names:
            if not self.is_running(name):
                raise ProcessDied(f"{name} exited unexpectedly; {self.log_tail(name)}")

    def log(self, name: str) -> Path:
        return self.directory / f"{name}.log"

    def log_tail(self, name: str, *, lines: int = 30) -> str:
        """The path of a log and its last lines, for error messages."""
        path = self.log(name)
        tail = path.read_text(errors="replace").splitlines()[-lines:] if path.exists() else []
        return "\n".join([f"the end of {path}:", *tail])

    def _recorded(self) -> dict[str, Identity]:
        if not self._record.exists():
            return {}
        return {name: Identity(**identity) for name, identity in json.loads(self._record.read_text()).items()}

    def _write(self) -> None:
        partial = self._record.with_suffix(".partial")
        partial.write_text(json.dumps({name: asdict(identity) for name, identity in self._identities.items()}))
        partial.rename(self._record)


def end(identity: Identity, *, grace_s: float = 10, by: signal.Signals = signal.SIGTERM) -> None:
    """Signal a process, which need not be a child, and wait until it has exited; SIGKILL after `grace_s`."""
    try:
        handle = os.pidfd_open(identity.pid)  # a handle stays with this process even if its pid is reused
    except ProcessLookupError:
        return
    try:
        for number, patience_s in ((by, grace_s), (signal.SIGKILL, 10.0)):
            if not identity.is_alive():
                return
            try:
                signal.pidfd_send_signal(handle, number)
            except ProcessLookupError:
                return
            if select.select([handle], [], [], patience_s)[0]:
                return
    finally:
        os.close(handle)
    raise ProcessDied(f"pid {identity.pid} is still running 10 s after SIGKILL")


def identify(pid: int) -> Identity | None:
    """The process that has this pid now, or None."""
    stat = _stat(pid)
    return None if stat is None else Identity(pid, stat.started_ticks)


def _tied(argv: Sequence[str | Path]) -> list[str]:
    if shutil.which("setpriv") is None:
        raise PrerequisiteMissing("no `setpriv` on PATH; on Debian `apt-get install util-linux` brings it")
    return ["setpriv", "--pdeathsig", "KILL", "--", *(str(word) for word in argv)]


@dataclass(frozen=True)
class _Stat:
    state: str  # one letter; Z (zombie) and X (dead) have exited
    started_ticks: int  # since boot


def _stat(pid: int) -> _Stat | None:
    """Parse /proc/PID/stat. The name in field 2 may contain spaces and brackets, so split after the last bracket."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return _Stat(state=fields[0], started_ticks=int(fields[19]))
