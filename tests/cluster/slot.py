"""A slot: what a node uses of the machine outside its folder (a bridge, a subnet, an nftables table, two folders).

A machine has sixteen slots. The holder of a slot's lock owns it. The node's kubelet and scheduler inherit the lock, so
it is held exactly as long as the node runs. If an owner is killed, the next one to lock the slot removes what is left:
containers, mounts, bridge. `cluster.guard` does this at once; if it fails, the next start does.
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

# A kubelet sets these for the whole machine when it starts (container_manager_linux.go). They are restored afterwards.
KEPT_SYSCTLS = RUN / "sysctls.json"
SYSCTLS = ("vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops")


class Slot:
    """One set of machine-wide names.

    Attributes:
        gateway: this machine's address on the bridge. Pods reach the host there, and nothing beyond it.
        run, data: the node's folders in memory and on disk. Both contain sockets, whose paths are limited to 107 bytes;
            the temporary folders of pytest are too deep for that.
        lock: an open file; the slot is taken while any process holds it open.
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
        """Create folders and bridge; return a token that identifies this occupation later."""
        _remove(self.data)  # after a reboot only this folder is left
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
        """For pods of this node, redirect the address of the Service `kubernetes` to the API server on `port`.

        Replaces kube-proxy with one rule. The rule matches the bridge and not the pods' addresses, because the
        Service has the same address in every cluster on this machine.
        """
        Path(f"/proc/sys/net/ipv4/conf/{self.bridge}/route_localnet").write_text(
            "1"
        )  # without it the kernel drops packets redirected to 127/8
        rule = f"iifname {self.bridge} ip daddr 10.96.0.1 tcp dport 443 dnat to 127.0.0.1:{port}"
        chain = f"chain services {{ type nat hook prerouting priority dstnat\n{rule}\n}}"
        _run(str(nft), f"table ip {self.bridge} {{\n{chain}\n}}")

    def is_occupied_as(self, token: str) -> bool:
        """Whether that occupation still exists: not swept, and not replaced by another."""
        return self._facts().get("token") == token

    def sweep(self) -> None:
        """Stop and remove everything that is left of the slot's node, whichever process started it."""
        if not self.run.exists():
            return
        for shim in _shims_of(self.containerd_socket):
            end(shim, grace_s=0)
        self._end_containers()
        for words in (["nft", "delete", "table", "ip", self.bridge], ["ip", "link", "delete", self.bridge]):
            subprocess.run(words, capture_output=True, check=False)  # may not exist
        _remove(self.data)
        _remove(self.run)  # last: an interrupted sweep is repeated as long as this folder exists
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
        """Kill every process in the cgroups of our containers, in all hierarchies of cgroup v1 or the one of v2.

        containerd names a cgroup after the container's id (64 random digits) and keeps a folder with that name while
        the container exists.
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
            for pid in pids - {0}:  # 0 is a process outside our pid namespace
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
    """Lock a free slot and sweep it.

    Raises: ClusterError if all slots are taken.
    """
    RUN.mkdir(parents=True, exist_ok=True)
    for number in range(SLOTS):
        slot = try_slot(number)
        if slot is not None:
            slot.sweep()
            return slot
    raise ClusterError(f"all {SLOTS} node slots of this machine are taken; see {RUN} and `python -m cluster status`")


def try_slot(number: int) -> Slot | None:
    """The slot with its lock, or None if another process holds the lock."""
    lock = (RUN / f"node-{number}.lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return None
    return Slot(number, lock)


def _keep_sysctls() -> None:
    """Save the values from before the first of several concurrent nodes."""
    if not KEPT_SYSCTLS.exists():
        values = {name: Path("/proc/sys", name).read_text().strip() for name in SYSCTLS}
        KEPT_SYSCTLS.write_text(json.dumps(values))


def _restore_sysctls() -> None:
    if KEPT_SYSCTLS.exists():
        for name, value in json.loads(KEPT_SYSCTLS.read_text()).items():
            Path("/proc/sys", name).write_text(value)
        KEPT_SYSCTLS.unlink()


def _shims_of(containerd_socket: Path) -> Iterator[Identity]:
    """The shims of our pods. They outlive containerd by design; their command line contains its socket."""
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
    """Raises: ClusterError if something stays mounted: removing the folder could delete files of the mounted one."""
    for _ in range(3):  # a mount may hide another one at the same place
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
    except (FileNotFoundError, OSError):  # the cgroup was removed meanwhile
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
