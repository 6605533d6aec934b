"""The chains of examples/rated-sentences on part of their sentences."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from cluster.distillchain import quickstart_material

EXAMPLE = Path(__file__).parents[2] / "examples/rated-sentences"


def example_on(root: Path, name: str, **rows: int) -> dict[str, Any]:
    """The chain `name` of the example on rows in `root`, with its store there.

    Args:
        rows: of each split, taken from all parts of it.
    """
    material = quickstart_material()
    write_data(material / "data", root / "data", rows)
    text = (EXAMPLE / name).read_text().replace("file://../../.quickstart/models", f"file://{material}/models")
    document: dict[str, Any] = yaml.safe_load(text.replace("file://../../.quickstart", f"file://{root}"))
    splits = document["spec"]["task"]["dataset"]["splits"]
    document["spec"]["task"]["dataset"]["splits"] = {split: splits[split] for split in rows}
    return document


def write_data(source: Path, target: Path, rows: dict[str, int]) -> None:
    target.mkdir(parents=True)
    for split, count in rows.items():
        header, *lines = (source / f"rated-{split}.tsv").read_bytes().decode().removesuffix("\n").split("\n")
        chosen = lines[:: len(lines) // count][:count]
        (target / f"rated-{split}.tsv").write_bytes("\n".join([header, *chosen, ""]).encode())


def distillchain(*command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs the command in `folder` with one thread."""
    return subprocess.run(
        [sys.executable, "-m", "distillchain_cli", *command],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=400,
    )
