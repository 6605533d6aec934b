"""What a node takes of the machine outside its folder: a bridge, a subnet, a cgroup, a folder under /run.

A machine has sixteen such sets, and each belongs to whoever holds its lock. The lock is inherited by the node's
kubelet and scheduler, so it lasts exactly as long as the node does, and who gets a slot whose owner was killed sweeps
up after it: containers, mounts, bridge, cgroups. `cluster.guard` does so at once, a later start at the latest.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from cluster.errors import ClusterError, CommandFailed
from cluster.processes import Identity, end, identify
from cluster.waiting import wait_until

SLOTS = 16
RUN = Path("/run/distillchain")
CGROUPS = Path("/sys/fs/cgroup")

# What a kubelet sets on the whole machine when it starts, and we set back (kubelet, container_manager_linux.go).
SYSCTLS = ("vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops")


class Slot:
    """One set of machine-wide names.

    Attributes:
        gateway: an address of this machine on the bridge; pods reach the host there and nothing beyond.
        run: short paths for sockets, and what is gone after a reboot.
        lock: an open file; whoever inherits it keeps the slot.
    """

    def __init__(self, number: int, lock: IO[str] | None) -> None:
        self.number = number
        self.lock = lock
        self.bridge = f"distill{number}"
        self.gateway = f"10.213.{number}.1"
        self.subnet = f"10.213.{number}.0/24"
        self.run = RUN / f"node-{number}"
        self.cgroup = f"/distillchain-{number}"
        self.containerd_socket = self.run / "containerd.sock"

    def occupy(self, ip: Path, *, mutable: list[Path]) -> str:
        """Makes folder and bridge, and returns a token by which this occupation is known later.

        Args:
            mutable: the folders of the node to unmount and remove when the slot is swept, and now, should they exist.
        """
        _remove(mutable)
        self.run.mkdir(parents=True)
        token = uuid.uuid4().hex
        sysctls = {name: Path("/proc/sys", name).read_text().strip() for name in SYSCTLS}
        facts = {"token": token, "mutable": [str(path) for path in mutable], "sysctls": sysctls}
        (self.run / "slot.json").write_text(json.dumps(facts))
        _run(str(ip), "link", "add", self.bridge, "type", "bridge")
        _run(str(ip), "address", "add", f"{self.gateway}/24", "dev", self.bridge)
        _run(str(ip), "link", "set", self.bridge, "up")
        return token

    def is_occupied_as(self, token: str) -> bool:
        """Whether that occupation was neither swept nor followed by another."""
        return self._facts().get("token") == token

    def sweep(self) -> None:
        """Ends and removes whatever is left of the slot's node, whoever started it and however it ended."""
        if not self.run.exists():
            return
        facts = self._facts()
        for shim in _shims_of(self.containerd_socket):
            end(shim, grace_s=0)
        self._end_containers()
        subprocess.run(["ip", "link", "delete", self.bridge], capture_output=True, check=False)  # may be gone
        for name, value in facts.get("sysctls", {}).items():
            Path("/proc/sys", name).write_text(value)
        _remove([Path(path) for path in facts.get("mutable", [])])
        _remove([self.run])  # last: a sweep that is cut off is begun again

    def release(self) -> None:
        if self.lock is not None:
            self.lock.close()
            self.lock = None

    def _facts(self) -> dict[str, Any]:
        file = self.run / "slot.json"
        return dict(json.loads(file.read_text())) if file.exists() else {}

    def _end_containers(self) -> None:
        """All that runs in our cgroup, in each hierarchy of cgroup v1 or in the one of v2."""
        roots = [path for path in (CGROUPS / self.cgroup[1:], *CGROUPS.glob(f"*{self.cgroup}")) if path.is_dir()]

        def is_empty() -> bool:
            pids = {int(pid) for root in roots for file in root.rglob("cgroup.procs") for pid in _read_lines(file)}
            for pid in pids:
                try:
                    os.kill(pid, 9)
                except ProcessLookupError:
                    continue
            return not pids

        wait_until(f"the processes in cgroup {self.cgroup} to end", is_empty, deadline_s=20)
        for root in roots:
            for folder, _, _ in os.walk(root, topdown=False):
                _remove_cgroup(Path(folder))


def claim_slot() -> Slot:
    """A free slot, swept.

    Raises: ClusterError when all are taken.
    """
    RUN.mkdir(parents=True, exist_ok=True)
    for number in range(SLOTS):
        slot = try_slot(number)
        if slot is not None:
            slot.sweep()
            return slot
    raise ClusterError(f"all {SLOTS} node slots of this machine are taken; see {RUN} and `python -m cluster status`")


def try_slot(number: int) -> Slot | None:
    """The slot with its lock, or None while somebody holds that."""
    lock = (RUN / f"node-{number}.lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return None
    return Slot(number, lock)


def _shims_of(containerd_socket: Path) -> Iterator[Identity]:
    """Each pod has a shim that outlives containerd on purpose; its command line names the socket of its containerd."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            words = _command_line(entry)
            if "containerd-shim" in words[0] and str(containerd_socket) in words:
                shim = identify(int(entry.name))
                if shim is not None:
                    yield shim


def _remove(folders: list[Path]) -> None:
    for folder in folders:
        _unmount_below(folder)
        if folder.exists():
            shutil.rmtree(folder)


def _unmount_below(folder: Path) -> None:
    """Raises: ClusterError when something stays mounted, for to remove a folder then may empty what is mounted there."""
    for _ in range(3):  # a mount may hide another of the same place
        below = [path for path in _mount_points() if path.is_relative_to(folder)]
        for path in reversed(below):
            subprocess.run(["umount", "--lazy", str(path)], capture_output=True, check=False)
    if left := [str(path) for path in _mount_points() if path.is_relative_to(folder)]:
        raise ClusterError(f"cannot unmount {', '.join(left)}; unmount it by hand, then remove {folder}")


def _mount_points() -> list[Path]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [Path(line.split()[4].encode().decode("unicode_escape")) for line in lines]


def _remove_cgroup(folder: Path) -> None:
    def is_removed() -> bool:
        try:
            folder.rmdir()
        except FileNotFoundError:
            return True
        except OSError:  # busy: the kernel is still freeing what ran there
            return False
        return True

    wait_until(f"cgroup {folder} to be removable", is_removed, deadline_s=10)


def _read_lines(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except (FileNotFoundError, OSError):  # the cgroup went meanwhile
        return []


def _command_line(entry: Path) -> list[str]:
    try:
        return (entry / "cmdline").read_text(errors="replace").split("\0")
    except (FileNotFoundError, ProcessLookupError):
        return [""]


def _run(*argv: str) -> None:
    done = subprocess.run(argv, text=True, capture_output=True, check=False)
    if done.returncode != 0:
        raise CommandFailed(argv, done.returncode, done.stderr)
