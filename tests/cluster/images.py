"""Container images made of a few files, and a pod template that mounts this machine's Python.

This needs neither a registry nor a builder: an image is a tar of tars. A pod starts in a second, because everything big
is mounted from the host. The images of the Dockerfile are tested in tests/e2e/test_images.py.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import platform
import stat
import sys
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster.errors import ClusterError

CHECKOUT = Path(__file__).resolve().parents[2]

PAUSE_IMAGE = "distillchain.io/tests/pause:1"
HOST_PYTHON_IMAGE = "distillchain.io/tests/host-python:1"

TRAINER_PACKAGES = ("api", "store", "report", "trainer")  # the trainer's own folder and those it imports from

# Many libraries look up HOME or the user's name: without these lines getpass.getuser() raises for uid 1000.
PASSWD = "root:x:0:0:root:/tmp:/bin/sh\ntrainer:x:1000:1000:trainer:/tmp:/bin/sh\n"
GROUP = "root:x:0:\ntrainer:x:1000:\n"


def build_scratch_image(
    name: str,
    archive: Path,
    *,
    files: Mapping[str, bytes] | None = None,
    directories: Sequence[str] = (),
    command: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> Path:
    """Write an OCI archive of an image that contains only these files. The same arguments give the same bytes.

    Args:
        name: full reference with a tag, such as distillchain.io/tests/x:1; not `latest`, which is always pulled.
        files: path in the image without leading slash -> content. Every user can read and execute them.
        command: the entrypoint.
    """
    layer = _build_layer(files or {}, directories)
    machine = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]
    config = _to_json(
        {
            "architecture": machine,
            "os": "linux",
            "config": {
                "Entrypoint": list(command),
                "Env": [f"{key}={value}" for key, value in (environment or {}).items()],
            },
            "rootfs": {"type": "layers", "diff_ids": [_digest(layer)]},
        }
    )
    packed = gzip.compress(layer, mtime=0)
    manifest = _to_json(
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": _describe("application/vnd.oci.image.config.v1+json", config),
            "layers": [_describe("application/vnd.oci.image.layer.v1.tar+gzip", packed)],
        }
    )
    entry = _describe("application/vnd.oci.image.manifest.v1+json", manifest) | {
        "annotations": {"io.containerd.image.name": name},
        "platform": {"architecture": machine, "os": "linux"},
    }
    index = _to_json({"schemaVersion": 2, "manifests": [entry]})
    blobs = {f"blobs/sha256/{_digest(blob).removeprefix('sha256:')}": blob for blob in (config, packed, manifest)}
    with tarfile.open(archive, "w") as tar:
        for path, content in {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}', "index.json": index, **blobs}.items():
            _add_file(tar, path, content)
    return archive


def build_pause_image(archive: Path, busybox: Path) -> Path:
    """The image that holds a pod's namespaces. It contains busybox, so tests that need a shell use it too."""
    applets = {f"bin/{name}": b"#!/bin/busybox sh\nexec /bin/busybox " + name.encode() + b' "$@"\n' for name in APPLETS}
    return build_scratch_image(
        PAUSE_IMAGE,
        archive,
        files={
            "bin/busybox": busybox.read_bytes(),
            **applets,
            "etc/passwd": PASSWD.encode(),
            "etc/group": GROUP.encode(),
        },
        directories=["tmp"],
        command=["/bin/busybox", "sleep", "2147483647"],
        environment={"PATH": "/bin"},
    )


# Those that test pods call by name; `busybox NAME` runs any other.
APPLETS = ("sh", "sleep", "cat", "echo", "true", "false", "wget", "id", "ls", "nc", "env", "dd", "tail")


def build_host_python_image(archive: Path) -> Path:
    """An image of mount points and /etc/passwd only: see `host_python_pod_template`."""
    return build_scratch_image(
        HOST_PYTHON_IMAGE,
        archive,
        files={"etc/passwd": PASSWD.encode(), "etc/group": GROUP.encode()},
        directories=["tmp", "usr", "bin", "lib", "lib64"],
        command=["python"],
    )


def host_python_pod_template(
    *read_only: Path, container: str = "trainer", environment: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """A PodTemplateSpec fragment for HOST_PYTHON_IMAGE: this process's Python, its packages and this checkout.

    Everything is mounted read-only at the same path as on this machine. The interpreter may be in a home directory that
    only its owner can enter: its parent folders are created in the container, where every user can enter them.

    Args:
        read_only: more folders of this machine, for example with models and data; the path in the pod is the same.
        container: name of the container that gets the mounts and the environment.
        environment: variables in addition to PATH and PYTHONPATH.
    Raises: ClusterError if only its owner can enter one of the folders, which is the case for pytest's `tmp_path`.
    """
    folders = _without_nested(
        [*_system_folders(), *_python_folders(), CHECKOUT, *(path.absolute() for path in read_only)]
    )
    for folder in folders:
        if not folder.stat().st_mode & stat.S_IXOTH:
            raise ClusterError(f"{folder}: the pod's user cannot enter it, even mounted; run `chmod o+rx {folder}`")
    variables = {
        "PATH": f"{Path(sys.prefix) / 'bin'}:/usr/bin:/bin",
        "PYTHONPATH": ":".join(str(CHECKOUT / package) for package in TRAINER_PACKAGES),
        **(environment or {}),
    }
    volumes = [
        {"name": f"host-{number}", "hostPath": {"path": str(folder), "type": "Directory"}}
        for number, folder in enumerate(folders)
    ]
    mounts = [
        {"name": f"host-{number}", "mountPath": str(folder), "readOnly": True} for number, folder in enumerate(folders)
    ]
    variables_list = [{"name": key, "value": value} for key, value in variables.items()]
    return {
        "spec": {"containers": [{"name": container, "env": variables_list, "volumeMounts": mounts}], "volumes": volumes}
    }


def _system_folders() -> list[Path]:
    """The C library and other system files. A mount follows /lib and /bin if they are links into /usr."""
    return [path for path in map(Path, ("/usr", "/bin", "/lib", "/lib64")) if path.exists()]


def _python_folders() -> list[Path]:
    """Folders of the virtual environment and its base interpreter, under every path that links between them may use."""
    prefixes = [Path(sys.prefix), Path(sys.base_prefix)]
    return [*prefixes, *(path.resolve() for path in prefixes)]


def _without_nested(folders: Sequence[Path]) -> list[Path]:
    """Sorted, without duplicates and without folders inside others."""
    kept: list[Path] = []
    for folder in sorted(set(folders)):
        if not any(folder.is_relative_to(outer) for outer in kept):
            kept.append(folder)
    return kept


def _build_layer(files: Mapping[str, bytes], directories: Sequence[str]) -> bytes:
    """Pack files and folders; every user can enter the folders and write to /tmp."""
    folders = {str(parent) for path in files for parent in Path(path).parents} | set(directories)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for folder in sorted(folders - {"."}):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if folder == "tmp" else 0o755
            tar.addfile(entry)
        for path, content in sorted(files.items()):
            _add_file(tar, path, content)
    return buffer.getvalue()


def _add_file(tar: tarfile.TarFile, path: str, content: bytes) -> None:
    entry = tarfile.TarInfo(path)
    entry.size, entry.mode = len(content), 0o755
    tar.addfile(entry, io.BytesIO(content))


def _describe(media_type: str, blob: bytes) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": _digest(blob), "size": len(blob)}


def _digest(blob: bytes) -> str:
    return f"sha256:{hashlib.sha256(blob).hexdigest()}"


def _to_json(document: object) -> bytes:
    return json.dumps(document, sort_keys=True).encode()
