"""Which worker of pytest-xdist runs which file."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from distribution import LONGEST, NODE
from harness.parts import TESTS

MARKED = "import pytest\npytestmark = pytest.mark.{mark}\ndef test_it():\n    pass\n"


def test_the_longest_units_are_files_that_exist() -> None:
    assert [unit for unit in LONGEST if unit != NODE and not (TESTS.parent / unit).exists()] == []


@pytest.mark.slow
def test_all_files_of_the_node_run_on_one_worker(tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    marks = {"a": NODE, "b": NODE, "c": "cluster"}
    for name, mark in marks.items():
        (tmp_path / f"tests/test_{name}.py").write_text(MARKED.format(mark=mark))
    (tmp_path / "pytest.ini").write_text(f"[pytest]\nmarkers =\n  cluster\n  {NODE}\n")

    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "distribution", "-n", "2", "--dist", "loadfile", "-v"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(TESTS)},
        text=True,
        capture_output=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout
    workers = {name: worker for worker, name in re.findall(r"\[(gw\d)\].* PASSED tests/test_(\w)", done.stdout)}
    assert workers["a"] == workers["b"] != workers["c"]
