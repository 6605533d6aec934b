"""The best epoch of a training on validation: its weights on disk, and when a lack of improvement ends the training.

The rules: a value must be better than all before it, so of equal epochs the earlier one is kept. A value that is not a
number is never the best. If no epoch has a number, the weights of the last epoch stay.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
from pathlib import Path
from typing import Any

from distillchain_api.base import Record
from distillchain_api.metrics import Metric
from distillchain_api.wire.manifest import SelectedEpoch
from distillchain_trainer.engine.ranks.world import World
from distillchain_trainer.engine.training.training_state import load_weights, save_weights

log = logging.getLogger(__name__)

BEST = "best"
"""Prefix of the file with the best epoch's weights, in the work folder and in a saved state."""
WEIGHTS_FILE = f"{BEST}.safetensors"


class BestSoFar(Record):
    """What is known after some epochs. It is part of a saved state."""

    measured: int = 0
    """Epochs that were measured."""
    epoch: int = 0
    """The best of them; 0: none had a number."""
    step: int = 0
    """The last step of the best epoch."""
    value: float | None = None

    def after(self, epoch: int, step: int, value: float, metric: Metric) -> BestSoFar:
        """With one more epoch."""
        is_better = math.isfinite(value) and (self.value is None or metric.is_better(value, self.value))
        if is_better:
            return BestSoFar(measured=epoch, epoch=epoch, step=step, value=value)
        return self.model_copy(update={"measured": epoch})

    def is_over(self, patience: int) -> bool:
        """Whether so many epochs in a row have not improved; never with a patience of 0."""
        return 0 < patience <= self.measured - self.epoch


class EpochSelection:
    """Keeps the weights of the best epoch. All ranks hold the same `best`; rank 0 has the file.

    Args:
        folder: for the file of the weights.
        sharded: rank 0 alone has all weights.
        best: from a saved state.
        state: the folder of that state.
    """

    def __init__(
        self,
        metric: Metric,
        patience: int,
        *,
        folder: Path,
        world: World,
        sharded: bool,
        best: BestSoFar,
        state: Path | None,
    ) -> None:
        self._metric, self._patience, self._folder, self._world = metric, patience, folder, world
        self._sharded = sharded
        self.best = best
        if state is not None and best.epoch and world.is_main:
            shutil.copyfile(state / WEIGHTS_FILE, folder / WEIGHTS_FILE)

    @property
    def is_over(self) -> bool:
        """Whether the training ends here for lack of improvement."""
        return self.best.is_over(self._patience)

    def measured(self, epoch: int, step: int, metrics: dict[str, float], model: Any) -> None:
        """Takes the metrics at the end of an epoch, and the weights if they are the best. All ranks call it."""
        # The value of rank 0 for all: another machine may round a mean differently, and all must choose the same epoch.
        value = json.loads(
            self._world.from_main(lambda: json.dumps(metrics[self._metric.name]), "comparison of an epoch")
        )
        self.best = self.best.after(epoch, step, value, self._metric)
        if self.best.epoch == epoch and self._world.is_main:
            save_weights(model, self._folder, name=WEIGHTS_FILE)
        # A large student takes minutes to write, and the collectives of the next step have a time limit.
        self._world.meet("storing of an epoch")

    def result(self, step: int, *, epochs: int) -> SelectedEpoch:
        """The chosen epoch, which is logged.

        Args:
            step: the last one.
            epochs: after which the training would have ended without patience.
        """
        best, kept = self.best, self.best.epoch or self.best.measured
        if not best.epoch:
            log.warning("the metric is not a number after any epoch; the weights of the last epoch stay")
        log.info(
            "patience ended the training" if best.measured < epochs else "all epochs trained",
            extra={"after_epoch": best.measured, "of": epochs, "kept_epoch": kept, self._metric.name: best.value},
        )
        return SelectedEpoch(epoch=kept, step=best.step or step, trained_epochs=best.measured)

    def write_state(self, state: Path) -> None:
        """Adds the weights to a state that rank 0 saves."""
        if self.best.epoch:
            shutil.copyfile(self._folder / WEIGHTS_FILE, state / WEIGHTS_FILE)

    def restore(self, model: Any) -> None:
        """Gives the model the weights of the best epoch. All ranks call it."""
        if not self.best.epoch:
            return
        if self._world.is_main:
            load_weights(model, self._folder, name=WEIGHTS_FILE)
            (self._folder / WEIGHTS_FILE).unlink()
        self._world.meet("loading of the best epoch")
        if not self._sharded:
            self._world.copy_from_main(model.state_dict().values())
