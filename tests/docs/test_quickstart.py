"""Runs the blocks of README.md and docs/quickstart.md that need a checkout, with part of the quick start's data."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from cluster.distillchain import quickstart_material
from docs.blocks import Block
from docs.catalogue import Scene, of
from docs.shell import a_checkout, environment, run_block

EVERY = 8  # every eighth of the quick start's 9,372 rows: with fewer, its teacher stays at chance and is refused


@pytest.mark.parametrize("block", of(Scene.CHECKOUT))
def test_in_a_checkout(block: Block, tmp_path: Path) -> None:
    done = run_block(block, a_checkout(tmp_path / "checkout"), variables=environment(tmp_path))

    assert "valid" in done.stdout or "femto" in done.stdout


@pytest.mark.models
def test_the_quick_start_on_part_of_its_data(tmp_path: Path) -> None:
    """The changes: fewer rows, and no gates, because models trained on so few rows miss them."""
    chain = "examples/quickstart/chain.yaml"
    checkout = a_checkout(tmp_path / "checkout", copied=[chain])
    ungated, gates = re.subn(r"^ +gate: .*\n", "", (checkout / chain).read_text(), flags=re.MULTILINE)
    assert gates == 2
    (checkout / chain).write_text(ungated)
    _some_quickstart_data(checkout / ".quickstart")

    (checkout / "chain.yaml").write_text(
        ungated.replace("file://../../", "file://./")
    )  # the chain.yaml of README.md, in the user's folder
    variables = environment(tmp_path, PYTHONPATH=os.environ.get("PYTHONPATH", ""))

    outputs = [
        run_block(block.values[0], checkout, variables=variables)
        for block in of(Scene.QUICKSTART, "docs/quickstart.md")
    ]
    for block in of(Scene.QUICKSTART, "README.md"):
        (checkout / "report.html").unlink()
        run_block(block.values[0], checkout, variables=variables)

    assert "femto" in outputs[0].stdout
    assert "<svg" in (checkout / "report.html").read_text()
    assert re.search(r"'label': '(negative|positive)'", outputs[-1].stdout)


def _some_quickstart_data(folder: Path) -> None:
    whole = quickstart_material()
    (folder / "data").mkdir(parents=True)
    (folder / "models").symlink_to(whole / "models")
    for path in (whole / "data").glob("*.tsv"):
        header, *rows = path.read_text().splitlines(keepends=True)
        (folder / "data" / path.name).write_text(
            "".join([header, *rows[::EVERY]])
        )  # rows are sorted by class, so take every nth
