"""A disk that is really full: a tmpfs too small for what a stage writes. Mounting it needs root."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from distillchain_api.failures import EXIT_CODE, FailureClass
from distillchain_api.wire.answer import Committed, Failed
from distillchain_store.commit import read_manifest
from distillchain_store.opening import open_store
from trainer.parts import an_order, answer_in, run_here, start_process

pytestmark = [pytest.mark.models, pytest.mark.root]


class Disk:
    """A tmpfs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def mount(self, kib: int) -> None:
        self.folder.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", self.folder], check=True)

    def grow(self) -> None:
        subprocess.run(["mount", "-o", "remount,size=64m", self.folder], check=True)


@pytest.fixture(params=["store", "work"])
def disk(request: pytest.FixtureRequest, root: Path) -> Iterator[Disk]:
    """Where the checkpoints go, or where the trainer works."""
    made = Disk(root / request.param)
    yield made
    subprocess.run(["umount", made.folder], check=True)


@pytest.mark.parametrize("kib", [4, 40])
def test_a_full_disk_is_named_nothing_half_written_counts_and_with_room_it_commits(disk: Disk, kib: int, root: Path):
    order = an_order(root)
    disk.mount(kib)

    process = start_process(order, root)
    _, said = process.communicate(timeout=120)

    assert process.returncode == EXIT_CODE[FailureClass.DISK_FULL]
    assert "Traceback" not in said
    answer = answer_in(root)
    assert isinstance(answer, Failed)
    assert answer.message.startswith("no space left on the disk at ")
    assert str(disk.folder) in answer.message
    store = open_store(f"file://{root}/store", endpoint_url=None, region=None)
    assert read_manifest(store, order.digest) is None

    disk.grow()
    # Within this process, which saves the start of another one.
    assert isinstance(run_here(order, root, attempt="with-room"), Committed)
    assert read_manifest(store, order.digest) is not None
