"""What a node takes of the machine outside its folder: a bridge, a subnet, a table of nftables, two folders.

A machine has sixteen such sets, and each belongs to whoever holds its lock. The lock is inherited by the node's
kubelet and scheduler, so it lasts exactly as long as the node does, and who gets a slot whose owner was killed sweeps
up after it: containers, mounts, bridge. `cluster.guard` does so at once, a later start at the latest.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
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
DATA = Path("/var/lib/distillchain")
CGROUPS = Path("/sys/fs/cgroup")

# What a kubelet sets on the whole machine when it starts, and we set back (kubelet, container_manager_linux.go).
KEPT_SYSCTLS = RUN / "sysctls.json"
SYSCTLS = ("vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops")


class Slot:
    """One set of machine-wide names.

    Attributes:
        gateway: an address of this machine on the bridge; pods reach the host there and nothing beyond.
        run, data: folders of the node's own, in memory and on disk. Sockets lie in both, and their paths have to be
            short (107 bytes), which those of a test are not.
        lock: an open file; whoever inherits it keeps the slot.
    """

    def __init__(self, number: int, lock: IO[str] | None) -> None:
        self.number = number
        self.lock = lock
        self.bridge = f"distill{number}"
        self.gateway = f"10.213.{number}.1"
        self.subnet = f"10.213.{number}.0/24"
        self.run = RUN / f"node-{number}"
        self.data = DATA / f"node-{number}"
        self.containerd_socket = self.run / "containerd.sock"

    def occupy(self, ip: Path) -> str:
        """Makes folders and bridge, and returns a token by which this occupation is known later."""
        _remove(self.data)  # left by a reboot, which takes all the rest
        for folder in (self.run, self.data):
            folder.mkdir(parents=True, mode=0o711)
        token = uuid.uuid4().hex
        (self.run / "slot.json").write_text(json.dumps({"token": token}))
        _keep_sysctls()
        _run(str(ip), "link", "add", self.bridge, "type", "bridge")
        _run(str(ip), "address", "add", f"{self.gateway}/24", "dev", self.bridge)
        _run(str(ip), "link", "set", self.bridge, "up")
        return token

    def lead_to_api(self, nft: Path, port: int) -> None:
        """Pods find the API server on 127.0.0.1:`port` at the address of the Service `kubernetes`, as everywhere.

        Instead of kube-proxy: one rule for what comes from this bridge. Not by an address of the bridge, for every
        cluster has the same one.
        """
        Path(f"/proc/sys/net/ipv4/conf/{self.bridge}/route_localnet").write_text("1")  # else 127/8 is no target
        rule = f"iifname {self.bridge} ip daddr 10.96.0.1 tcp dport 443 dnat to 127.0.0.1:{port}"
        chain = f"chain services {{ type nat hook prerouting priority dstnat\n{rule}\n}}"
        _run(str(nft), f"table ip {self.bridge} {{\n{chain}\n}}")

    def is_occupied_as(self, token: str) -> bool:
        """Whether that occupation was neither swept nor followed by another."""
        return self._facts().get("token") == token

    def sweep(self) -> None:
        """Ends and removes whatever is left of the slot's node, whoever started it and however it ended."""
        if not self.run.exists():
            return
        for shim in _shims_of(self.containerd_socket):
            end(shim, grace_s=0)
        self._end_containers()
        for words in (["nft", "delete", "table", "ip", self.bridge], ["ip", "link", "delete", self.bridge]):
            subprocess.run(words, capture_output=True, check=False)  # may be gone
        _remove(self.data)
        _remove(self.run)  # late: a sweep that is cut off is begun again
        if not any(RUN.glob("node-*/")):
            _restore_sysctls()

    def release(self) -> None:
        if self.lock is not None:
            self.lock.close()
            self.lock = None

    def _facts(self) -> dict[str, Any]:
        file = self.run / "slot.json"
        return dict(json.loads(file.read_text())) if file.exists() else {}

    def _end_containers(self) -> None:
        """All that runs in the cgroups of our containers, in each hierarchy of cgroup v1 or in the one of v2.

        containerd names a cgroup by the container's id, 64 random digits, and keeps a folder of that name while the
        container is there.
        """
        tasks = self.run / "containerd" / "io.containerd.runtime.v2.task" / "k8s.io"
        ids = [path.name for path in tasks.iterdir()] if tasks.is_dir() else []
        cgroups = [
            path for name in ids for pattern in (f"k8s.io/{name}", f"*/k8s.io/{name}") for path in CGROUPS.glob(pattern)
        ]

        def is_empty() -> bool:
            pids = {
                int(pid) for cgroup in cgroups for file in cgroup.rglob("cgroup.procs") for pid in _read_lines(file)
            }
            for pid in pids - {0}:  # 0 stands for a process that we cannot see
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            return not pids

        wait_until(f"the containers of {self.run} to end", is_empty, deadline_s=20)
        for cgroup in cgroups:
            for folder, _, _ in os.walk(cgroup, topdown=False):
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


def _keep_sysctls() -> None:
    """What they are before the first of the nodes that run side by side."""
    if not KEPT_SYSCTLS.exists():
        values = {name: Path("/proc/sys", name).read_text().strip() for name in SYSCTLS}
        KEPT_SYSCTLS.write_text(json.dumps(values))


def _restore_sysctls() -> None:
    if KEPT_SYSCTLS.exists():
        for name, value in json.loads(KEPT_SYSCTLS.read_text()).items():
            Path("/proc/sys", name).write_text(value)
        KEPT_SYSCTLS.unlink()


def _shims_of(containerd_socket: Path) -> Iterator[Identity]:
    """Each pod has a shim that outlives containerd on purpose; its command line names the socket of its containerd."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            words = _command_line(entry)
            if "containerd-shim" in words[0] and str(containerd_socket) in words:
                shim = identify(int(entry.name))
                if shim is not None:
                    yield shim


def _remove(folder: Path) -> None:
    _unmount_below(folder)
    if folder.exists():
        shutil.rmtree(folder)


def _unmount_below(folder: Path) -> None:
    """Raises: ClusterError when something stays mounted: removing the folder might empty what is mounted there."""
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
