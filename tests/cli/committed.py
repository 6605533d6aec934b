"""A chain file whose first stages are committed in its store, without a training."""

from __future__ import annotations

from pathlib import Path

import pytest

from distillchain_api.graph import Plan
from report import stores
from report.stores import Relay, write_relay


def write_store(folder: Path, plan: Plan, *, committed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commits the first students of a plan under their digests, and no teacher's pass."""
    digests = {stage.name: stage.digest for stage in plan.stages}
    monkeypatch.setattr(stores, "digest_of", lambda name: digests.get(name, "0" * 64))
    names = [stage.name for stage in plan.students][:committed]
    chain = f"{plan.chain.metadata.namespace}/{plan.chain.name}"
    write_relay(folder, Relay(names=names, accuracies=[0.93, 0.9, 0.85][: committed + 1], chain=chain))
