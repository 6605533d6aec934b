"""Distribute the tests among the workers of pytest-xdist with `-n 2 --dist loadfile`.

A file stays on one worker, because its module fixtures (a browser, an installed CRD) take seconds to start. All tests
that use the node go to the same worker: on two cores, two nodes are slower than one. The longest files start first, so
that at the end no worker waits minutes for the other.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling  # type: ignore[import-untyped]  # published without types

NODE = "node"

# Units that take about a minute or more on two cores, the longest first. The others start after them.
LONGEST = (
    NODE,
    "tests/docs/test_blocks.py",
    "tests/cli/test_tagging_example.py",
    "tests/operator/test_kueue_on_apiserver.py",
    "tests/benchmarks/test_evidence.py",
    "tests/report/test_browser.py",
    "tests/trainer/test_smollm2.py",
    "tests/trainer/test_launch_stage.py",
    "tests/cli/test_cluster_commands.py",
    "tests/cli/test_run_models.py",
    "tests/operator/test_chains_on_apiserver.py",
    "tests/trainer/test_hub.py",
    "tests/trainer/test_interruption.py",
    "tests/cli/test_watching.py",
    "tests/operator/test_lease.py",
    "tests/simulation/test_histories.py",
    "tests/simulation/test_more_histories.py",
    "tests/chart/test_chart_on_apiserver.py",
    "tests/benchmarks/test_gpu.py",
    "tests/trainer/test_sharding.py",
    "tests/cli/test_sweep_example.py",
)


class FilesAndOneNode(LoadFileScheduling):  # type: ignore[misc]  # its base class has no types
    """Like `--dist loadfile`, except that the tests of the node are one unit."""

    def _split_scope(self, nodeid: str) -> str:
        return unit_of(nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> FilesAndOneNode | None:
    if config.getoption("dist") != "loadfile":
        return None
    if renamed := [unit for unit in LONGEST if unit != NODE and not (config.rootpath / unit).exists()]:
        raise pytest.UsageError(f"{Path(__file__).name}: LONGEST names files that do not exist: {', '.join(renamed)}")
    config.option.loadscopereorder = False  # pytest-xdist would start the units with the most tests first
    return FilesAndOneNode(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """In a worker, mark the ids of the node's tests, because the scheduler sees ids only, and sort the tests."""
    if not hasattr(config, "workerinput"):
        return
    for item in items:
        if item.get_closest_marker(NODE):
            item._nodeid = f"{item.nodeid}@{NODE}"  # type: ignore[attr-defined]  # as pytest-xdist does for `--dist loadgroup`
    items.sort(key=lambda item: rank(unit_of(item.nodeid)))


def unit_of(nodeid: str) -> str:
    return NODE if nodeid.endswith(f"@{NODE}") else nodeid.split("::", 1)[0]


def rank(unit: str) -> int:
    return LONGEST.index(unit) if unit in LONGEST else len(LONGEST)
