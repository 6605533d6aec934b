"""Build the images of the Dockerfile on a machine that has no registry to pull a base image from.

    python -m cluster.build_images operator   # builds it as `make image-operator` does, and prints its name

Only the base differs from a release: Debian by debootstrap, built once per machine (a minute), instead of
python:3.12-slim. Base and layers are in the user's cache, so a second build takes seconds. The machine's own image
store is not used.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

from cluster.errors import ClusterError, CommandFailed
from cluster.node import Node
from cluster.prerequisites import ImageTools, ensure_image_tools

Target = Literal["operator", "trainer"]

CHECKOUT = Path(__file__).resolve().parents[2]
REGISTRY = "ghcr.io/example"  # the registry in config/, so that its manifests run here unchanged
RUN = Path("/run/distillchain/images")

SUITE = "bookworm"
BASE_PACKAGES = ("ca-certificates", "python3", "python3-venv")
# What Debian's slim images leave out. The copyright files stay: an SBOM reads the licences from them.
REMOVED_FROM_BASE = (
    *("usr/share/man", "usr/share/info", "usr/share/locale", "usr/share/lintian", "usr/share/groff"),
    *("var/cache/apt", "var/cache/debconf", "var/lib/apt/lists", "var/log"),
)
BASE_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Image:
    """An image in the builder's store."""

    name: str
    id: str


class Archive:
    """The content of a saved image, read without running it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def config(self) -> dict[str, Any]:
        """The image's `config`: User, Labels, Entrypoint, Env."""
        with tarfile.open(self.path) as tar:
            return dict(json.loads(_read(tar, self._manifest(tar)["Config"]))["config"])

    @cached_property
    def files(self) -> dict[str, int]:
        """Path without leading slash -> size, of the files and links in all layers, hidden or not."""
        sizes: dict[str, int] = {}
        with tarfile.open(self.path) as tar:
            for layer in self._manifest(tar)["Layers"]:
                with tarfile.open(fileobj=tar.extractfile(layer)) as inner:
                    sizes |= {entry.name.removeprefix("./"): entry.size for entry in inner if not entry.isdir()}
        return sizes

    @cached_property
    def size_bytes(self) -> int:
        """Uncompressed size of all layers: the space on a node's disk."""
        with tarfile.open(self.path) as tar:
            return sum(tar.getmember(layer).size for layer in self._manifest(tar)["Layers"])

    def _manifest(self, tar: tarfile.TarFile) -> dict[str, Any]:
        (manifest,) = json.loads(_read(tar, "manifest.json"))
        return dict(manifest)


class Builder:
    """buildah with its own image store.

    Raises: PrerequisiteMissing if buildah is missing and cannot be installed.
    """

    def __init__(self) -> None:
        self._tools: ImageTools = ensure_image_tools()
        self._cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "distillchain" / "images"
        self._cache.mkdir(parents=True, exist_ok=True)
        self.argv = (
            *(str(self._tools.buildah), "--root", str(self._cache / "storage")),
            *("--runroot", str(RUN), "--storage-driver", "overlay"),
        )

    def build(self, target: Target, *, registry: str = REGISTRY) -> Image:
        """Build the image of this checkout with the Make target that a release uses.

        The first build takes two minutes for the operator and ten for the trainer, which contains CUDA (6 GB).
        """
        with self._locked():
            base = self._ensure_base()
            self._forget_old_layers()
            started = time.monotonic()
            _say(f"building the image of the {target}")
            # The build uses this machine's network and certificates, which may include those of a proxy.
            flags = "--layers --isolation chroot --network host --volume /etc/ssl/certs:/etc/ssl/certs:ro"
            make = ["make", "--no-print-directory", f"image-{target}", f"BASE={base}", f"REGISTRY={registry}"]
            words = [*make, f"BUILDER={shlex.join(self.argv)}", f"BUILD_FLAGS={flags}"]
            name = _run(words, cwd=CHECKOUT).stdout.splitlines()[-1]
            image = Image(name, self._id(name))
            _say(f"{name} is built ({time.monotonic() - started:.0f} s)")
            return image

    @contextmanager
    def saved(self, image: Image) -> Iterator[Archive]:
        """Save `image` in Docker's format, which containerd reads too; delete the file when the block ends."""
        with tempfile.TemporaryDirectory(dir=self._cache) as folder:
            path = Path(folder) / "image.tar"
            started = time.monotonic()
            self._buildah("push", "--quiet", image.id, f"docker-archive:{path}:{image.name}")
            _say(f"saved {image.name}, {path.stat().st_size / 1e6:.0f} MB, in {time.monotonic() - started:.0f} s")
            yield Archive(path)

    def load(self, image: Image, node: Node) -> None:
        """Load the image into a node under its name."""
        with self.saved(image) as archive:
            node.import_image(archive.path)

    def _ensure_base(self) -> str:
        recipe = hashlib.sha256(repr((SUITE, BASE_PACKAGES, REMOVED_FROM_BASE, BASE_PATH)).encode()).hexdigest()[:12]
        name = f"localhost/distillchain-base:{SUITE}-{recipe}"
        if self._buildah("inspect", "--type", "image", name, check=False).returncode == 0:
            return name
        _say(f"building a base of Debian {SUITE} with debootstrap (a minute, once)")
        started = time.monotonic()
        container = self._buildah("from", "scratch").stdout.strip()
        try:
            root = Path(self._buildah("mount", container).stdout.strip())
            include = f"--include={','.join(BASE_PACKAGES)}"
            _run([str(self._tools.debootstrap), "--variant=minbase", include, SUITE, str(root)], cwd=self._cache)
            _slim(root)
            self._buildah("umount", container)
            self._buildah("config", "--env", f"PATH={BASE_PATH}", "--cmd", "python3", container)
            self._buildah("commit", "--quiet", container, name)
        finally:
            self._buildah("rm", container)
        _say(f"built the base in {time.monotonic() - started:.0f} s")
        return name

    def _forget_old_layers(self) -> None:
        """Delete the layers of earlier builds when the Dockerfile or a lock file changes: they take tens of GB."""
        kept_for = self._cache / "layers-of"
        digest = hashlib.sha256()
        for name in ("Dockerfile", *(f"requirements/{lock}.txt" for lock in ("build", "operator", "trainer"))):
            digest.update((CHECKOUT / name).read_bytes())
        if not kept_for.exists() or kept_for.read_text() != digest.hexdigest():
            self._buildah("rmi", "--prune", check=False)
            kept_for.write_text(digest.hexdigest())

    def _id(self, name: str) -> str:
        return str(json.loads(self._buildah("inspect", "--type", "image", name).stdout)["FromImageID"])

    def _buildah(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return _run([*self.argv, *words], cwd=self._cache, check=check)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Two test runs that start at the same time build once."""
        with (self._cache / ".lock").open("w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield


def _read(tar: tarfile.TarFile, name: str) -> bytes:
    file = tar.extractfile(name)
    assert file is not None
    return file.read()


def _slim(root: Path) -> None:
    for folder in REMOVED_FROM_BASE:
        for path in (root / folder).glob("*"):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    for path in (root / "usr/share/doc").rglob("*"):
        if not path.is_dir() and path.name != "copyright":
            path.unlink()


def _run(
    argv: Sequence[str], *, cwd: Path, env: Mapping[str, str] | None = None, check: bool = True
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(argv, cwd=cwd, env=env, text=True, capture_output=True, check=False)
    if check and done.returncode != 0:
        raise CommandFailed(argv, done.returncode, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return done


def _say(text: str) -> None:
    print(f"images: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    chosen = [target for target in get_args(Target) if sys.argv[1:] == [target]]
    if not chosen:
        sys.exit(f"usage: python -m cluster.build_images {'|'.join(get_args(Target))}")
    try:
        print(Builder().build(chosen[0]).name)
    except ClusterError as error:
        sys.exit(f"images: {error}")
