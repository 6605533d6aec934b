"""Runs a block of the documentation as a user would: in a shell at the root of a checkout."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from docs.blocks import REPOSITORY, Block

DEADLINE_S = 540
OWN = (".quickstart", ".venv", ".git", "site", ".cache")


def a_checkout(folder: Path, *, copied: Sequence[str] = ()) -> Path:
    """A folder that looks like a checkout with its virtual environment. It contains links, so a block can create files.

    Args:
        copied: files to copy instead of linking, because the caller changes them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for path in REPOSITORY.iterdir():
        if path.name not in OWN and not any(name.startswith(f"{path.name}/") for name in copied):
            (folder / path.name).symlink_to(path)
    for name in copied:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((REPOSITORY / name).read_bytes())
    (folder / ".venv").symlink_to(Path(sys.executable).parent.parent)
    return folder


def run_block(
    block: Block, cwd: Path, *, variables: dict[str, str], before: str = "", after: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run a block in `bash -e` or in Python. The assertion shows page, line and output."""
    script = f"{before}\n{block.text}\n{after}\n"
    argv = [sys.executable, "-c", script] if block.language == "python" else ["bash", "-euo", "pipefail", "-c", script]
    done = subprocess.run(argv, cwd=cwd, env=variables, text=True, capture_output=True, check=False, timeout=DEADLINE_S)
    assert done.returncode == 0, f"{block}: exit code {done.returncode}\n{block.text}\n{done.stdout}\n{done.stderr}"
    return done


def environment(scratch: Path, *paths: Path, **more: str) -> dict[str, str]:
    """Our environment without variables of other stores and clusters. `paths` come first on PATH."""
    foreign = ("AWS_", "DISTILLCHAIN_", "KUBE", "HF_", "HELM_")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    search = os.pathsep.join([*map(str, paths), str(Path(sys.executable).parent), os.environ["PATH"]])
    homes = {"HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"}
    return inherited | {"PATH": search} | {name: str(scratch / name.lower()) for name in homes} | more
