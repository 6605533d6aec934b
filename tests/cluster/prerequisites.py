"""What tests need of the machine besides Python: root (for a node and for images) and some Debian packages."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.errors import PrerequisiteMissing

PACKAGES = ("containerd", "runc", "containernetworking-plugins", "busybox-static", "iproute2", "nftables", "util-linux")
IMAGE_PACKAGES = ("buildah", "debootstrap", "debian-archive-keyring")
# Two test workers may each miss a package at the same time, and apt-get fails at once while another one runs.
INSTALL_LOCK = Path("/run/distillchain-packages.lock")
CNI_FOLDERS = (Path("/usr/lib/cni"), Path("/opt/cni/bin"))  # Debian's folder; that of upstream releases


@dataclass(frozen=True)
class Tools:
    """Paths of the programs that a node needs."""

    containerd: Path
    ctr: Path
    runc: Path
    ip: Path
    nft: Path
    busybox: Path  # statically linked, so that it runs in an image without a C library
    cni: Path  # a folder with the plugins `bridge`, `host-local` and `loopback`


def ensure_tools() -> Tools:
    """The programs of a node. On Debian, missing ones are installed.

    Raises: PrerequisiteMissing.
    """
    if os.geteuid() != 0:
        raise PrerequisiteMissing(
            "a node needs root to create cgroups, mounts and a bridge; run it as root, "
            "or use a control plane without a node"
        )
    if _missing() and shutil.which("apt-get"):
        _install(PACKAGES)
    if missing := _missing():
        raise PrerequisiteMissing(
            f"missing on this machine: {', '.join(missing)}; on Debian run `apt-get install {' '.join(PACKAGES)}`, "
            "elsewhere install the packages of the same names"
        )
    paths = {name: _find(name) for name in ("containerd", "ctr", "runc", "ip", "nft", "busybox")} | {
        "cni": _cni_folder()
    }
    return Tools(**{name: path for name, path in paths.items() if path is not None})


@dataclass(frozen=True)
class ImageTools:
    """Programs that build an image without a registry to pull a base image from."""

    buildah: Path
    debootstrap: Path


def ensure_image_tools() -> ImageTools:
    """buildah and debootstrap. On Debian, missing ones are installed.

    Raises: PrerequisiteMissing.
    """
    if os.geteuid() != 0:
        raise PrerequisiteMissing("debootstrap needs root to create a root file system; run it as root")

    def missing() -> list[str]:
        return [name for name in ("buildah", "debootstrap") if _find(name) is None]

    if missing() and shutil.which("apt-get"):
        _install(IMAGE_PACKAGES)
    buildah, debootstrap = _find("buildah"), _find("debootstrap")
    if buildah is None or debootstrap is None:
        raise PrerequisiteMissing(
            f"missing on this machine: {', '.join(missing())}; on Debian run "
            f"`apt-get install {' '.join(IMAGE_PACKAGES)}`, elsewhere install the packages of the same names"
        )
    return ImageTools(buildah, debootstrap)


def ensure_program(*names: str, packages: Sequence[str]) -> Path:
    """The first of `names` that is installed. If none is, `packages` are installed (on Debian, as root).

    Raises: PrerequisiteMissing.
    """

    def found() -> Path | None:
        return next(filter(None, map(_find, names)), None)

    if found() is None and os.geteuid() == 0 and shutil.which("apt-get"):
        _install(packages)
    if program := found():
        return program
    raise PrerequisiteMissing(f"{names[0]} is not installed; on Debian run `apt-get install {packages[0]}` as root")


def _missing() -> list[str]:
    missing = [name for name in ("containerd", "ctr", "runc", "ip", "nft", "setpriv", "umount") if _find(name) is None]
    if _cni_folder() is None:
        missing.append("CNI plugins (bridge, host-local, loopback)")
    busybox = _find("busybox")
    if busybox is None or b"/ld-linux" in busybox.read_bytes():
        missing.append("a static busybox")
    return missing


def _install(packages: Sequence[str]) -> None:
    print(f"cluster: installing {' '.join(packages)}", file=sys.stderr, flush=True)
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    with INSTALL_LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # The first completes what was interrupted before. An update that fails in part may still be enough.
        for words in (["dpkg", "--configure", "-a"], ["apt-get", "update", "-qq"]):
            subprocess.run(words, env=quiet, capture_output=True, check=False)
        install = ["apt-get", "install", "-qq", "--yes", "--no-install-recommends", *packages]
        done = subprocess.run(install, env=quiet, text=True, capture_output=True, check=False)
        if done.returncode != 0:
            raise PrerequisiteMissing(f"`{' '.join(install)}` failed: {done.stderr.strip()}")


def _find(name: str) -> Path | None:
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin:/usr/bin:/bin")
    return None if found is None else Path(found)


def _cni_folder() -> Path | None:
    plugins = ("bridge", "host-local", "loopback")
    return next((folder for folder in CNI_FOLDERS if all((folder / name).exists() for name in plugins)), None)
