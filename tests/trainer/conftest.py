"""Fixtures of the trainer's tests: a taught teacher, and what lies beside the project."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from trainer.launching import Nodes
from trainer.parts import an_order, run_here, save_bert, write_data


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Who asks for the taught teacher trains: the mark `models` keeps it out of the quick loop."""
    for item in items:
        if "taught" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.models)


@pytest.fixture(autouse=True, scope="session")
def _one_thread(request: pytest.FixtureRequest) -> Iterator[None]:
    """Two tests at once on two cores: with more threads each waits for the other."""
    if not any(item.get_closest_marker("models") for item in request.session.items):
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data/, and teacher/: a small BERT that stage zero has fine-tuned on them."""
    root = tmp_path_factory.mktemp("taught")
    write_data(root / "data", test=40)
    save_bert(root / "start", labels=None)
    order = an_order(root, teacher={"model": f"file://{root}/start", "fineTune": {"epochs": 4}})
    answer = run_here(order, root)
    shutil.copytree(answer.checkpoint.removeprefix("file://"), root / "teacher")
    return root


@pytest.fixture
def root(taught: Path, tmp_path: Path) -> Path:
    """A fresh folder with data/ and teacher/ of its own."""
    shutil.copytree(taught / "data", tmp_path / "data")
    shutil.copytree(taught / "teacher", tmp_path / "teacher")
    return tmp_path


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    """Starts launchers."""
    started = Nodes(tmp_path)
    with started.ended():
        yield started
