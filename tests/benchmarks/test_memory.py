"""The memory bench runs, and shows that rows and teacher outputs of a training take little memory."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.models

BENCH = Path(__file__).parents[2] / "bench/memory.py"
PHASES = ("read", "encode", "teach", "reuse", "batch")


def test_more_rows_take_little_more_memory(tmp_path: Path):
    """Lists of Python objects took more than 1 KB a row, and the outputs of 500 classes 2 KB."""
    sizes = ["--rows", "30000", "100000", "--classes", "500"]
    command = [sys.executable, str(BENCH), *sizes, "--folder", str(tmp_path)]

    done = subprocess.run(command, capture_output=True, text=True, check=True)

    few, many = (json.loads(line) for line in done.stdout.splitlines())
    assert (few["rows"], many["rows"]) == (30_000, 100_000)
    # What a phase frees stays with the process at times and goes back to the system at others, so the peaks up to a phase
    # are compared.
    peaks = zip(accumulate(peaks_of(few), max), accumulate(peaks_of(many), max), strict=True)
    for phase, (peak_of_few, peak_of_many) in zip(PHASES, peaks, strict=True):
        grown = (peak_of_many - peak_of_few) * 2**20 / 70_000
        assert grown < 300, f"{phase}: {grown:.0f} bytes per row; the measurement is uncertain by some MiB"
    assert list(tmp_path.iterdir()) == []


def peaks_of(measured: dict[str, Any]) -> list[float]:
    """Allocated memory at the peak of each phase, in MiB."""
    return [measured[f"{phase}_peak_mib"] for phase in PHASES]
