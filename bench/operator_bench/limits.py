"""Compares what was measured with the limits of bench/operator_limits.toml.

The limits are calibrated from several runs on the machine of bench/LOG.md; a slower one needs a file of its own.
"""

from __future__ import annotations

import statistics
import tomllib
from collections import defaultdict
from pathlib import Path

LIMITS = Path(__file__).resolve().parents[1] / "operator_limits.toml"


class Measured:
    """The values of all runs of this checkout's operator, by case, such as `start-5000`."""

    def __init__(self) -> None:
        self._runs: dict[str, list[dict[str, float]]] = defaultdict(list)

    def add(self, case: str, values: dict[str, float]) -> None:
        """The values of one run by name."""
        self._runs[case].append(values)

    def compare(self, limits: Path = LIMITS) -> tuple[str, bool]:
        """A table of the medians of those values that have a limit, and whether each is within it."""
        lines, is_within = [f"{'case':<12} {'median of':<24} {'runs':>4} {'measured':>9} {'limit':>9}"], True
        for case, most_of in tomllib.loads(limits.read_text(encoding="utf-8")).items():
            for name, most in most_of.items():
                if not (runs := self._runs.get(case)):
                    continue
                median = statistics.median(run[name] for run in runs)
                is_within = is_within and median <= most
                verdict = "" if median <= most else "  EXCEEDED"
                lines.append(f"{case:<12} {name:<24} {len(runs):>4} {median:>9.2f} {most:>9.2f}{verdict}")
        return "\n".join(lines), is_within
