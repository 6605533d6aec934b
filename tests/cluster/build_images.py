"""The images of the Dockerfile, built on a machine that has no registry to pull a base from.

    python -m cluster.build_images operator   # builds it as `make image-operator` does, and prints its name

What differs from a release is the base alone: Debian by debootstrap, made once per machine (a minute), instead of
python:3.12-slim. Base and layers lie in the user's cache, so that a second build takes seconds; nothing is written
into the machine's own store of images.
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
REGISTRY = "ghcr.io/example"  # as config/ names the images: what a person applies runs here too
RUN = Path("/run/distillchain/images")

SUITE = "bookworm"
BASE_PACKAGES = ("ca-certificates", "python3", "python3-venv")
# As in Debian's own slim images; the copyright files stay, an SBOM takes licences from them.
BASE_CHAFF = (
    *("usr/share/man", "usr/share/info", "usr/share/locale", "usr/share/lintian", "usr/share/groff"),
    *("var/cache/apt", "var/cache/debconf", "var/lib/apt/lists", "var/log"),
)
BASE_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Image:
    """One image in the store of the builder."""

    name: str
    id: str


class Archive:
    """What is in a saved image, read without running it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def config(self) -> dict[str, Any]:
        """The image's `config`: User, Labels, Entrypoint, Env."""
        with tarfile.open(self.path) as tar:
            return dict(json.loads(_read(tar, self._manifest(tar)["Config"]))["config"])

    @cached_property
    def files(self) -> dict[str, int]:
        """Path without leading slash -> size of all files and links in any layer; what a later one hides counts too."""
        sizes: dict[str, int] = {}
        with tarfile.open(self.path) as tar:
            for layer in self._manifest(tar)["Layers"]:
                with tarfile.open(fileobj=tar.extractfile(layer)) as inner:
                    sizes |= {entry.name.removeprefix("./"): entry.size for entry in inner if not entry.isdir()}
        return sizes

    @cached_property
    def size_bytes(self) -> int:
        """Of all layers, uncompressed: what a node's disk holds."""
        with tarfile.open(self.path) as tar:
            return sum(tar.getmember(layer).size for layer in self._manifest(tar)["Layers"])

    def _manifest(self, tar: tarfile.TarFile) -> dict[str, Any]:
        (manifest,) = json.loads(_read(tar, "manifest.json"))
        return dict(manifest)


class Builder:
    """buildah with a store of its own.

    Raises: PrerequisiteMissing where there is no buildah and none can be installed.
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
        """The image of this checkout, by the Make target that a release uses.

        The first time takes two minutes for the operator and ten for the trainer, which brings CUDA (6 GB).
        """
        with self._locked():
            base = self._ensure_base()
            self._forget_old_layers()
            started = time.monotonic()
            _say(f"building the image of the {target}")
            # Processes of the build see this machine's network and its certificates, a proxy's among them.
            flags = "--layers --isolation chroot --network host --volume /etc/ssl/certs:/etc/ssl/certs:ro"
            make = ["make", "--no-print-directory", f"image-{target}", f"BASE={base}", f"REGISTRY={registry}"]
            words = [*make, f"BUILDER={shlex.join(self.argv)}", f"BUILD_FLAGS={flags}"]
            said = _run(words, cwd=CHECKOUT).stdout
            name = said.splitlines()[-1]
            image = Image(name, self._id(name))
            _say(f"{name} is built ({time.monotonic() - started:.0f} s)")
            return image

    @contextmanager
    def saved(self, image: Image) -> Iterator[Archive]:
        """`image` in a file that is gone after the `with` block: Docker's format, which containerd and people read."""
        with tempfile.TemporaryDirectory(dir=self._cache) as folder:
            path = Path(folder) / "image.tar"
            started = time.monotonic()
            self._buildah("push", "--quiet", image.id, f"docker-archive:{path}:{image.name}")
            _say(f"saved {image.name}, {path.stat().st_size / 1e6:.0f} MB, in {time.monotonic() - started:.0f} s")
            yield Archive(path)

    def load(self, image: Image, node: Node) -> None:
        """Makes the image known to a node, under its name."""
        with self.saved(image) as archive:
            node.import_image(archive.path)

    def _ensure_base(self) -> str:
        recipe = hashlib.sha256(repr((SUITE, BASE_PACKAGES, BASE_CHAFF, BASE_PATH)).encode()).hexdigest()[:12]
        name = f"localhost/distillchain-base:{SUITE}-{recipe}"
        if self._buildah("inspect", "--type", "image", name, check=False).returncode == 0:
            return name
        _say(f"making a base of Debian {SUITE} by debootstrap (a minute, once)")
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
        _say(f"made the base in {time.monotonic() - started:.0f} s")
        return name

    def _forget_old_layers(self) -> None:
        """Layers are kept for the next build until it cannot use them: the trainer's take tens of GB."""
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
        """Two test runs that start together build once."""
        with (self._cache / ".lock").open("w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield


def _read(tar: tarfile.TarFile, name: str) -> bytes:
    file = tar.extractfile(name)
    assert file is not None
    return file.read()


def _slim(root: Path) -> None:
    for folder in BASE_CHAFF:
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
