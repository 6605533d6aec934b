"""The memory bench runs, and shows that rows and teacher outputs of a training take little memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.models

BENCH = Path(__file__).parents[2] / "bench/memory.py"


def test_more_rows_take_little_more_memory(tmp_path: Path):
    """Lists of Python objects took more than 1 KB a row, and the outputs of 500 classes 2 KB."""
    sizes = ["--rows", "20000", "60000", "--classes", "500"]
    command = [sys.executable, str(BENCH), *sizes, "--folder", str(tmp_path)]

    done = subprocess.run(command, capture_output=True, text=True, check=True)

    few, many = (json.loads(line) for line in done.stdout.splitlines())
    assert (few["rows"], many["rows"]) == (20_000, 60_000)
    for phase in ("read", "encode", "teach", "reuse", "batch"):
        grown = (many[f"{phase}_peak_mib"] - few[f"{phase}_peak_mib"]) * 2**20 / 40_000
        assert grown < 300, f"{phase}: {grown:.0f} bytes per row; the measurement is uncertain by some MiB"
    assert list(tmp_path.iterdir()) == []
