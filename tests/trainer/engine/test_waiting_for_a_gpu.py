"""How often a training waits for a GPU. Without one, the reads of losses are counted: each waits until the GPU is done."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest


@pytest.mark.parametrize(
    "device, steps, epoch_steps, reads",
    [("cuda", 1000, 2000, 20), ("cuda", 30, 10, 3), ("cpu", 7, 2000, 7)],
)
def test_losses_are_read_every_50_steps_and_at_the_end_of_an_epoch(
    device: str, steps: int, epoch_steps: int, reads: int
):
    from distillchain_trainer.engine.training.loop import _Run

    found: list[int] = []
    run: Any = object.__new__(_Run)
    run.work = SimpleNamespace(device=SimpleNamespace(type=device), world=SimpleNamespace(any=lambda *flags: flags))
    run.hooks = SimpleNamespace(stop=lambda: False)
    run.settings = SimpleNamespace(save_interval_s=600.0)
    run.selection, run.saved_at = None, time.monotonic()
    run.steps, run.epoch_steps, run.meter = 5000, epoch_steps, SimpleNamespace(unread=0)

    def read() -> None:
        found.append(run.step)
        run.meter.unread = 0

    run._read_losses = read
    for step in range(1, steps + 1):
        run.step = step
        run.meter.unread += 1
        run._after_step()

    assert len(found) == reads
