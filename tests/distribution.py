"""Distribute the tests among the workers of pytest-xdist with `--dist loadfile`.

A file stays on one worker, because its module fixtures (a browser, an installed CRD) take seconds to start. All files
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
    "tests/docs/test_quickstart.py",
    "tests/benchmarks/test_evidence.py",
    "tests/cli/test_tagging_example.py",
    "tests/operator/on_apiserver/test_kueue_on_apiserver.py",
    "tests/docs/test_blocks.py",
    "tests/report/test_browser.py",
    "tests/trainer/tasks/test_smollm2.py",
    "tests/trainer/launch/test_launch_stage.py",
    "tests/cli/test_cluster_commands.py",
    "tests/cli/test_run_models.py",
    "tests/operator/on_apiserver/test_chains_on_apiserver.py",
    "tests/trainer/models/test_hub.py",
    "tests/trainer/stage/test_interruption.py",
    "tests/cli/test_watching.py",
    "tests/operator/watch/test_lease.py",
    "tests/simulation/test_histories.py",
    "tests/simulation/test_more_histories.py",
    "tests/chart/test_chart_on_apiserver.py",
    "tests/benchmarks/test_gpu.py",
    "tests/trainer/engine/test_sharding.py",
    "tests/cli/test_sweep_example.py",
)


class FilesAndOneNode(LoadFileScheduling):  # type: ignore[misc]  # its base class has no types
    """Like `--dist loadfile`, except that the files with tests of the node are one unit."""

    def __init__(self, config: pytest.Config, log: Any) -> None:
        super().__init__(config, log)
        self._node_files = find_node_files(config.rootpath)

    def _split_scope(self, nodeid: str) -> str:
        return unit_of(nodeid, self._node_files)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> FilesAndOneNode | None:
    if config.getoption("dist") != "loadfile":
        return None
    config.option.loadscopereorder = False  # pytest-xdist would start the units with the most tests first
    return FilesAndOneNode(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """In a worker, sort the tests: the scheduler starts their units in this order."""
    if hasattr(config, "workerinput"):
        node_files = find_node_files(config.rootpath)
        items.sort(key=lambda item: rank(unit_of(item.nodeid, node_files)))


def find_node_files(root: Path) -> frozenset[str]:
    """Files with a test of the node. By their text: the scheduler knows the ids of tests, but not their marks."""
    files = (root / "tests").rglob("test_*.py")
    return frozenset(path.relative_to(root).as_posix() for path in files if f"pytest.mark.{NODE}" in path.read_text())


def unit_of(nodeid: str, node_files: frozenset[str]) -> str:
    file = nodeid.split("::", 1)[0]
    return NODE if file in node_files else file


def rank(unit: str) -> int:
    return LONGEST.index(unit) if unit in LONGEST else len(LONGEST)
