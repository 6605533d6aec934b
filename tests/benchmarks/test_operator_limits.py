"""The comparison of what was measured of the operator with its limits."""

from __future__ import annotations

from pathlib import Path

from bench.operator_bench.limits import LIMITS, Measured


def test_the_median_of_the_runs_is_compared_with_each_limit(tmp_path: Path):
    limits = tmp_path / "limits.toml"
    limits.write_text("[start-1000]\nseconds = 8\nwrites = 0\n[start-5000]\nseconds = 15\n")
    measured = Measured()
    for seconds in (5, 30, 6):
        measured.add("start-1000", {"seconds": seconds, "writes": 0, "requests": 9})
    table, is_within = measured.compare(limits)
    assert is_within
    assert [line.split() for line in table.splitlines()[1:]] == [
        ["start-1000", "seconds", "3", "6.00", "8.00"],
        ["start-1000", "writes", "3", "0.00", "0.00"],
    ]

    measured.add("start-5000", {"seconds": 15.1})
    table, is_within = measured.compare(limits)
    assert not is_within
    assert table.splitlines()[-1].split() == ["start-5000", "seconds", "1", "15.10", "15.00", "EXCEEDED"]


def test_a_case_without_a_run_is_not_compared():
    assert Measured().compare(LIMITS)[1]
