"""Container images made of a few files, and a pod template that borrows this machine's Python.

No registry, no builder: an image is a tar of tars. The real image of the trainer is proved elsewhere, by building the
Dockerfile; here a pod starts in a second because all that is big is mounted from the host.
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

# Nearly everything reads HOME or asks who it is: without these lines getpass.getuser() raises for uid 1000.
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
    """An OCI archive of an image with just these files; same arguments, same bytes.

    Args:
        name: full reference with a tag, such as distillchain.io/tests/x:1; not `latest`, which is always pulled.
        files: path in the image without leading slash -> content; all are executable and readable by everyone.
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
    """What holds a pod's namespaces; with busybox, so that it is also the image of tests that need a shell."""
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


# Those that test pods call; the rest by `busybox NAME`.
APPLETS = ("sh", "sleep", "cat", "echo", "true", "false", "wget", "id", "ls", "nc", "env", "dd", "tail")


def build_host_python_image(archive: Path) -> Path:
    """Nothing but mount points and /etc/passwd: see `host_python_pod_template`."""
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

    Everything is mounted read-only at its own path, the interpreter's prefix too: it may lie in a home directory that
    only its owner may enter, but a mount makes its parents anew in the container, open to all.

    Args:
        read_only: more folders of this machine, e.g. with models and data, at their own path in the pod.
        container: whose mounts and environment these are.
        environment: added to PATH and PYTHONPATH, which are ours.
    Raises: ClusterError when one of the folders is for its owner only, as pytest's `tmp_path` is.
    """
    folders = _without_nested(
        [*_system_folders(), *_python_folders(), CHECKOUT, *(path.absolute() for path in read_only)]
    )
    for folder in folders:
        if not folder.stat().st_mode & stat.S_IXOTH:
            raise ClusterError(f"{folder} is closed to the pod's user, mounted or not; `chmod o+rx {folder}` opens it")
    variables = {
        "PATH": f"{Path(sys.prefix) / 'bin'}:/usr/bin:/bin",
        "PYTHONPATH": ":".join(str(CHECKOUT / room) for room in ("api", "report", "trainer")),
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
    """The C library and friends; where /lib and /bin are links into /usr, a mount follows them."""
    return [path for path in map(Path, ("/usr", "/bin", "/lib", "/lib64")) if path.exists()]


def _python_folders() -> list[Path]:
    """Of the environment and of the interpreter behind it, by every name that a link between them may use."""
    prefixes = [Path(sys.prefix), Path(sys.base_prefix)]
    return [*prefixes, *(path.resolve() for path in prefixes)]


def _without_nested(folders: Sequence[Path]) -> list[Path]:
    """In order and once each; a folder within another comes with it."""
    kept: list[Path] = []
    for folder in sorted(set(folders)):
        if not any(folder.is_relative_to(outer) for outer in kept):
            kept.append(folder)
    return kept


def _build_layer(files: Mapping[str, bytes], directories: Sequence[str]) -> bytes:
    """All folders open to everyone; /tmp as on any system."""
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
