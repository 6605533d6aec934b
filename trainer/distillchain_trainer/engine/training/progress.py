"""How far a training is: the losses, some of which are still on the device, and a clock that counts training alone."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from distillchain_api.wire.manifest import SelectedEpoch
from distillchain_trainer.errors import TrainingDiverged

DIVERGED_REMEDY = "lower training.learningRate, add warmupRatio, or use precision float32"
RECENT_STEPS = 50  # progress shows their mean loss


@dataclass(frozen=True)
class TrainingProgress:
    """How far training is, for progress lines and saved states."""

    step: int
    of: int
    epoch: float
    loss: float
    """Mean of the last RECENT_STEPS steps."""
    train_s: float
    examples_per_second: float
    eta_s: float
    micro_batch_size: int
    mode: str
    """How steps are executed; see Mode."""
    selected: SelectedEpoch | None = None
    """The epoch whose weights the model has at the end; None before, and with `selection: Last`."""


class Meter:
    """Measures one training, or the rest of a resumed one. The clock starts at once."""

    def __init__(self, *, first_step: int, recent: list[float], train_s_before: float) -> None:
        """
        Args:
            recent: losses of the last steps before.
            train_s_before: seconds that earlier attempts spent training.
        """
        self.recent = recent
        self._first_step, self._train_s_before = first_step, train_s_before
        self._unread: list[Tensor] = []
        self._trained_rows = 0
        self._started = time.monotonic()
        self._away_s = 0.0

    def trained(self, loss: Tensor, *, rows: int) -> None:
        """Counts a step. Its loss stays on the device."""
        self._unread.append(loss)
        self._trained_rows += rows

    @property
    def unread(self) -> int:
        """Number of steps whose losses have not been read."""
        return len(self._unread)

    def read(self, step: int) -> Iterator[tuple[int, float]]:
        """The steps up to `step` whose losses were not read yet, with their losses.

        Raises: TrainingDiverged naming the first step whose loss is no number.
        """
        # One transfer for all losses: each read from a GPU waits until the GPU has caught up.
        values = torch.stack(self._unread).tolist() if self._unread else []
        first, self._unread = step - len(values) + 1, []
        for number, loss in enumerate(values, start=first):
            if not math.isfinite(loss):
                raise TrainingDiverged(f"the loss became {loss} at step {number}; {DIVERGED_REMEDY}")
            self.recent = [*self.recent[1 - RECENT_STEPS :], loss]
            yield number, loss

    @contextmanager
    def away(self) -> Iterator[None]:
        """The time within is spent on saving or measuring, and is no training."""
        began = time.monotonic()
        yield
        self._away_s += time.monotonic() - began

    def progress(
        self, step: int, of: int, *, epoch: float, micro_batch_size: int, mode: str, selected: SelectedEpoch | None
    ) -> TrainingProgress:
        """How far training is now."""
        # Rates and remaining time are of this attempt alone: an earlier one may have run on other hardware.
        here_s = time.monotonic() - self._started - self._away_s
        return TrainingProgress(
            step=step,
            of=of,
            epoch=epoch,
            loss=sum(self.recent) / max(len(self.recent), 1),
            train_s=self._train_s_before + here_s,
            examples_per_second=self._trained_rows / max(here_s, 1e-9),
            eta_s=(of - step) * here_s / max(step - self._first_step, 1),
            micro_batch_size=micro_batch_size,
            mode=mode,
            selected=selected,
        )
