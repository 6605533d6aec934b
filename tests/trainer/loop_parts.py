"""A small student, random rows and a call of the training loop."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification

from distillchain_api.resource.training import Training
from distillchain_trainer.engine.encoding.encoded import Encoded
from distillchain_trainer.engine.training import loop
from distillchain_trainer.engine.training.history import History
from distillchain_trainer.engine.training.loop import Hooks
from distillchain_trainer.engine.training.progress import TrainingProgress
from distillchain_trainer.engine.training.step import ExtraLoss, RowLosses
from distillchain_trainer.engine.training.training_rows import TrainingRows
from distillchain_trainer.errors import StopRequested
from distillchain_trainer.objectives.soft_targets import soft_target_loss

CLASSES = 3


def random_rows(count: int) -> TrainingRows:
    """Random token ids of random lengths with random teacher logits."""
    dice = torch.Generator().manual_seed(count)
    lengths = torch.randint(3, 12, (count,), generator=dice).tolist()
    ids = [torch.randint(1, 50, (size,), generator=dice).int().numpy() for size in lengths]
    answers = torch.randn(count, CLASSES, generator=dice)
    return TrainingRows(Encoded.of(ids, pad_id=0), torch.zeros(count), answers, torch.arange(count))


def batch_of(rows: TrainingRows, picked: Sequence[int]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    return rows.batch(torch.tensor(picked), width=max(rows.lengths[row] for row in picked))


def row_losses(answer: Any, compared: dict[str, Tensor]) -> Tensor:
    """SoftTargets at temperature 2."""
    return soft_target_loss(answer.logits, compared["teacher"], temperature=2.0)


def a_student(*, dropout: float = 0.0) -> BertForSequenceClassification:
    torch.manual_seed(3)
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
            max_position_embeddings=16, num_labels=CLASSES, hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
        )
    )  # fmt: skip


def recipe(**values: Any) -> Training:
    return Training(**{"epochs": 2, "batch_size": 8, "learning_rate": 5e-3, "seed": 1, **values})


def train(
    model: Any,
    rows: TrainingRows,
    training: Training,
    folder: Path,
    *,
    micro_batch_size: int | None = None,
    stop: Callable[[], bool] = lambda: False,
    resume_from: tuple[Path, int] | None = None,
    history: History | None = None,
    losses: RowLosses = row_losses,
    validate: Callable[[], dict[str, float]] = lambda: {"accuracy": 0.5},
    keep: list[tuple[Path, int]] | None = None,
    saves: bool = True,
    extra: ExtraLoss | None = None,
    fitting_rows: int | None = None,
) -> TrainingProgress:
    def save(state: Path, progress: TrainingProgress, stops: bool) -> bool:
        if keep is not None:
            keep.append((copied(state, folder / f"kept-{progress.step}"), progress.step))
        return saves

    return loop.train(
        model,
        rows,
        losses,
        loop.Settings(
            training,
            micro_batch_size=micro_batch_size,
            folder=folder,
            save_interval_s=3600.0,
            fitting_rows=fitting_rows,
        ),
        resume_from=resume_from,
        train_s_before=0.0,
        history=history or History([]),
        hooks=Hooks(stop=stop, on_step=lambda _: None, save=save, validate=lambda _: validate()),
        extra=extra,
    )


@dataclass(frozen=True)
class Stopped:
    """How a training ended that was told to stop.

    Attributes:
        step: the one that it says is saved.
        state: the newest state, and its step.
    """

    step: int
    state: tuple[Path, int]


def train_until_stopped(
    model: Any, rows: TrainingRows, training: Training, folder: Path, *, at_look: int, **options: Any
) -> Stopped:
    """Trains until it has asked `at_look` times whether to stop; then the answer is yes."""
    looks = itertools.count(1)
    kept: list[tuple[Path, int]] = []
    folder.mkdir(exist_ok=True)
    with pytest.raises(StopRequested) as stop:
        train(model, rows, training, folder, stop=lambda: next(looks) >= at_look, keep=kept, **options)
    return Stopped(stop.value.step, kept[-1])


def forget(model: Any) -> None:
    """Zeroes what is trained. A saved state must bring it back, or a resumed training cannot be told from another one."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.zero_()


def copied(state: Path, folder: Path) -> Path:
    """A copy of a saved state, which the training deletes."""
    return Path(shutil.copytree(state, folder))


def distance(one: Any, other: Any) -> float:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return max((a - b).abs().max().item() for a, b in pairs if a.is_floating_point())
