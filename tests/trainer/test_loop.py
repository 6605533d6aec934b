"""The training loop against transformers' Trainer, against itself in other micro-batches, and resumed at every step."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from distillchain_api.resource.training import Training
from distillchain_trainer.engine import loop
from distillchain_trainer.engine.data_order import epoch_batches
from distillchain_trainer.engine.encoded import Encoded
from distillchain_trainer.engine.history import History
from distillchain_trainer.engine.loop import Hooks, TrainingProgress
from distillchain_trainer.engine.optimizer import build_optimizer, learning_rate_at
from distillchain_trainer.engine.step import RowLosses
from distillchain_trainer.engine.training_rows import TrainingRows
from distillchain_trainer.errors import LostPeers, OutOfMemory, StopRequested, TrainingDiverged
from distillchain_trainer.objectives.soft_targets import soft_target_loss

pytestmark = pytest.mark.models

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
) -> TrainingProgress:
    def save(state: Path, progress: TrainingProgress, stops: bool) -> bool:
        if keep is not None:
            kept = folder / f"kept-{progress.step}"
            kept.mkdir()
            for file in state.iterdir():
                (kept / file.name).write_bytes(file.read_bytes())
            keep.append((kept, progress.step))
        return saves

    return loop.train(
        model,
        rows,
        losses,
        loop.Settings(training, micro_batch_size=micro_batch_size, folder=folder, save_interval_s=3600.0),
        resume_from=resume_from,
        train_s_before=0.0,
        history=history or History([]),
        hooks=Hooks(stop=stop, on_step=lambda _: None, save=save, validate=lambda _: validate()),
    )


def distance(one: Any, other: Any) -> float:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return max((a - b).abs().max().item() for a, b in pairs if a.is_floating_point())


class _FixedBatches(Trainer):
    """transformers' Trainer on the batches and the loss of our loop."""

    def __init__(self, rows: TrainingRows, batches: list[list[int]], **more: Any) -> None:
        super().__init__(train_dataset=batches, data_collator=lambda picked: picked[0], **more)
        self.rows = rows

    def get_train_dataloader(self) -> Any:
        return [{"rows": batch} for batch in self.train_dataset]  # type: ignore[union-attr]

    def compute_loss(self, model: Any, inputs: Any, *_: Any, **__: Any) -> Tensor:
        inputs, compared = batch_of(self.rows, inputs["rows"])
        return row_losses(model(**inputs), compared).mean()


@pytest.mark.parametrize("count", [64, 61, 9])
@pytest.mark.parametrize(
    "values",
    [
        {},
        {"scheduler": "cosine", "warmup_ratio": 0.3, "weight_decay": 0.1},
        {"scheduler": "constant", "warmup_ratio": 0.25, "max_grad_norm": 0.0},
        {"max_grad_norm": 0.05},
    ],
    ids=["plain", "cosine, warm-up and decay", "constant, not clipped", "clipped"],
)
def test_it_gives_the_weights_of_transformers_trainer_on_the_same_batches(
    tmp_path: Path, count: int, values: dict[str, Any]
):
    rows, training, start = random_rows(count), recipe(epochs=1, **values), a_student()
    ours, theirs = copy.deepcopy(start), copy.deepcopy(start)

    train(ours, rows, training, tmp_path)
    batches = epoch_batches(rows.lengths, training.batch_size, seed=training.seed, epoch=0)
    arguments = TrainingArguments(
        output_dir=str(tmp_path), num_train_epochs=1, max_steps=len(batches), per_device_train_batch_size=1,
        learning_rate=training.learning_rate, weight_decay=training.weight_decay,
        warmup_steps=math.ceil(len(batches) * training.warmup_ratio), max_grad_norm=training.max_grad_norm,
        lr_scheduler_type={"constant": "constant_with_warmup"}.get(training.scheduler, training.scheduler),
        use_cpu=True, save_strategy="no", logging_strategy="no", report_to=[], disable_tqdm=True, seed=training.seed,
        dataloader_pin_memory=False, remove_unused_columns=False,
    )  # fmt: skip
    _FixedBatches(rows, batches, model=theirs, args=arguments).train()

    assert distance(ours, start) > 1e-3, "it has learned something"
    assert distance(ours, theirs) < 1e-5


@pytest.mark.parametrize("count", [32, 97, 100, 105, 108, 110])
@pytest.mark.parametrize("micro", [1, 5, 8, 31])
def test_micro_batches_of_any_size_give_the_same_weights(tmp_path: Path, count: int, micro: int):
    """A short micro-batch counted as a whole one: with 110 rows as 8 x 4 the gradient was 19 % off."""
    rows, training, start = random_rows(count), recipe(batch_size=32, epochs=3), a_student()
    whole, cut = copy.deepcopy(start), copy.deepcopy(start)

    train(whole, rows, training, tmp_path)
    train(cut, rows, training, tmp_path, micro_batch_size=micro)

    assert distance(whole, cut) < 1e-5


def test_every_step_is_trained_with_dropout_also_after_a_measurement_in_evaluation_mode(tmp_path: Path):
    student, modes = a_student(dropout=0.2).eval(), []

    def losses(answer: Any, compared: dict[str, Tensor]) -> Tensor:
        modes.append(student.training)
        return row_losses(answer, compared)

    def validate() -> dict[str, float]:
        student.eval()
        return {"accuracy": 0.5}

    train(student, random_rows(20), recipe(epochs=3), tmp_path, losses=losses, validate=validate)

    assert modes == [True] * 9


@pytest.mark.parametrize("losses", [lambda *both: row_losses(*both).mean(), lambda *both: row_losses(*both)[:-1]])
def test_a_loss_that_is_not_one_value_per_row_is_refused(tmp_path: Path, losses: RowLosses):
    with pytest.raises(ValueError, match="expected one value for each of 8 rows"):
        train(a_student(), random_rows(20), recipe(), tmp_path, losses=losses)


def test_the_first_gradient_is_that_of_the_mean_over_the_rows_of_the_step(tmp_path: Path):
    rows, student = random_rows(7), a_student()
    inputs, compared = batch_of(rows, range(7))
    row_losses(student(**inputs), compared).mean().backward()
    want = {
        name: parameter.grad.clone() for name, parameter in student.named_parameters() if parameter.grad is not None
    }
    student.zero_grad()
    seen: dict[str, Tensor] = {}

    def losses(answer: Any, compared: dict[str, Tensor]) -> Tensor:
        return row_losses(answer, compared)

    for name, parameter in student.named_parameters():
        parameter.register_post_accumulate_grad_hook(
            lambda p, name=name: seen.__setitem__(name, p.grad.clone())  # type: ignore[misc]
        )
    train(student, rows, recipe(batch_size=32, epochs=1), tmp_path, micro_batch_size=3, losses=losses)

    for name, gradient in want.items():
        torch.testing.assert_close(seen[name], gradient, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("stop_at", [1, 7, 8, 9, 15])
def test_a_resumed_training_gives_the_same_bytes(tmp_path: Path, stop_at: int):
    """With dropout, so that the random numbers count; 61 rows are 8 steps an epoch."""
    rows, training, start = random_rows(61), recipe(warmup_ratio=0.1, weight_decay=0.01), a_student(dropout=0.2)
    whole, first, second = (copy.deepcopy(start) for _ in range(3))
    train(whole, rows, training, tmp_path / "whole")
    looks = iter(range(1, 100))
    kept: list[tuple[Path, int]] = []
    (tmp_path / "first").mkdir()

    with pytest.raises(StopRequested) as stop:
        train(first, rows, training, tmp_path / "first", stop=lambda: next(looks) >= stop_at, keep=kept)
    progress = train(second, rows, training, tmp_path / "second", resume_from=kept[-1])

    assert stop.value.step == stop_at
    assert progress.step == 16
    assert distance(whole, second) == 0.0


def test_an_epoch_that_ends_is_measured_once_also_when_training_stopped_there(tmp_path: Path):
    rows, training = random_rows(61), recipe(epochs=3)
    history, again = History([]), History([])
    train(a_student(), rows, training, tmp_path / "whole", history=history)
    looks, kept = iter(range(1, 100)), []  # type: ignore[var-annotated]
    (tmp_path / "first").mkdir()

    with pytest.raises(StopRequested):
        train(a_student(), rows, training, tmp_path / "first", stop=lambda: next(looks) >= 8, keep=kept, history=again)
    train(a_student(), rows, training, tmp_path / "second", resume_from=kept[-1], history=again)

    measured = [[point.step for point in each.points if point.validation] for each in (history, again)]
    assert measured == [[8, 16], [8, 16]], "the last epoch is measured with the finished student"


def test_the_loss_of_another_rank_during_a_measurement_ends_the_training(tmp_path: Path):
    def validate() -> dict[str, float]:
        raise LostPeers("rank 1 of 2 ended: OutOfMemory: one text does not fit")

    with pytest.raises(LostPeers):
        train(a_student(), random_rows(16), recipe(), tmp_path, validate=validate)


@pytest.mark.parametrize("name", ["linear", "cosine", "constant"])
@pytest.mark.parametrize("steps, ratio", [(1, 0.0), (10, 0.0), (10, 0.25), (17, 0.3), (100, 1.0)])
def test_the_learning_rate_is_that_of_transformers(name: Any, steps: int, ratio: float):
    training = recipe(scheduler=name, warmup_ratio=ratio)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=training.learning_rate)
    theirs = transformers.get_scheduler(
        {"constant": "constant_with_warmup"}.get(name, name),
        optimizer,
        num_warmup_steps=math.ceil(steps * ratio),
        num_training_steps=steps,
    )

    for step in range(steps):
        assert learning_rate_at(step, steps, training) == pytest.approx(theirs.get_last_lr()[0], rel=1e-9, abs=1e-15)
        optimizer.step()
        theirs.step()


@pytest.mark.parametrize(
    "kind", ["bert", "gpt2", "distilbert", "llama", "mpnet", "deberta-v2", "modernbert", "electra"]
)
def test_the_same_parameters_decay_as_in_transformers_trainer(tmp_path: Path, kind: str):
    sizes = {
        "vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8,
        "n_embd": 8, "n_layer": 1, "n_head": 2, "dim": 8, "n_layers": 1, "n_heads": 2, "hidden_dim": 8, "pad_token_id": 0,
        "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 3, "sep_token_id": 4,
    }  # fmt: skip
    config = transformers.AutoConfig.for_model(kind, **sizes)
    model = transformers.AutoModelForSequenceClassification.from_config(config)
    trainer = Trainer(model=model, args=TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[]))
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}

    decaying = build_optimizer(model, recipe(weight_decay=0.1)).param_groups[0]["params"]

    assert {name_of[id(parameter)] for parameter in decaying} == set(trainer.get_decay_parameter_names(model))


class _Small(torch.nn.Module):
    """A device that holds `room` tokens, which this machine lacks; it learns one number, with dropout."""

    def __init__(self, room: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.dropout = torch.nn.Dropout(dropout)
        self.room = room

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        if input_ids.numel() > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        sizes = self.dropout(attention_mask.float()).sum(-1, keepdim=True)
        return SimpleNamespace(logits=self.weight * sizes.expand(-1, CLASSES))


def _squares(answer: Any, compared: dict[str, Tensor]) -> Tensor:
    return ((answer.logits - compared["teacher"]) ** 2).sum(-1)


def test_a_micro_batch_that_does_not_fit_is_halved_and_the_result_stays(tmp_path: Path):
    """Batches differ in length, so it is often a later micro-batch of a step that does not fit."""
    rows = random_rows(45)
    large, small = _Small(room=10_000), _Small(room=30)

    train(large, rows, recipe(batch_size=16), tmp_path, losses=_squares)
    progress = train(small, rows, recipe(batch_size=16), tmp_path, losses=_squares, micro_batch_size=5)

    assert large.weight.item() == pytest.approx(small.weight.item(), abs=1e-6)
    assert large.weight.item() != 0
    assert progress.micro_batch_size < 5


def test_a_later_micro_batch_that_does_not_fit_leaves_no_gradient_and_no_random_number_behind(tmp_path: Path):
    """With dropout: the step that is made again draws the numbers of a run that was that small from the start."""
    rows, training = random_rows(30), recipe(batch_size=30, epochs=1)
    asked, short = _Small(room=10_000, dropout=0.5), _Small(room=10_000, dropout=0.5)
    calls = iter(range(1, 100))
    real = short.forward

    def fails_once(input_ids: Tensor, attention_mask: Tensor) -> Any:
        if next(calls) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(input_ids, attention_mask)

    short.forward = fails_once  # type: ignore[method-assign]  # a device that is full once

    train(asked, rows, training, tmp_path, losses=_squares, micro_batch_size=5)
    train(short, rows, training, tmp_path, losses=_squares, micro_batch_size=10)

    assert asked.weight.item() == short.weight.item() != 0


def test_a_resumed_training_keeps_the_micro_batches_that_memory_allowed(tmp_path: Path):
    rows, training, kept = random_rows(61), recipe(batch_size=16), []  # type: ignore[var-annotated]
    whole, first, second = (_Small(room=40, dropout=0.5) for _ in range(3))
    looks = iter(range(1, 1000))
    (tmp_path / "first").mkdir()
    train(whole, rows, training, tmp_path / "whole", losses=_squares)

    with pytest.raises(StopRequested):
        train(first, rows, training, tmp_path / "first", losses=_squares, keep=kept, stop=lambda: next(looks) >= 30)
    train(second, rows, training, tmp_path / "second", losses=_squares, resume_from=kept[-1])

    assert 0 < kept[-1][1] < 8
    assert whole.weight.item() == second.weight.item() != 0


def test_a_stop_within_a_long_step_saves_the_step_before_and_the_result_stays(tmp_path: Path):
    """One step of many micro-batches may take longer than a pod has to stop."""
    rows, training, start = random_rows(40), recipe(batch_size=40, epochs=3), a_student(dropout=0.2)
    whole, first, second = (copy.deepcopy(start) for _ in range(3))
    looks, kept = iter(range(1, 1000)), []  # type: ignore[var-annotated]
    (tmp_path / "first").mkdir()
    train(whole, rows, training, tmp_path / "whole", micro_batch_size=4)

    with pytest.raises(StopRequested) as stop:
        train(first, rows, training, tmp_path / "first", micro_batch_size=4, keep=kept, stop=lambda: next(looks) >= 15)
    train(second, rows, training, tmp_path / "second", micro_batch_size=4, resume_from=kept[-1])

    assert stop.value.step == 1, "ten looks are the first step's, the fifteenth is within the second"
    assert distance(whole, second) == 0.0


def test_a_stop_names_no_step_that_is_not_saved(tmp_path: Path):
    with pytest.raises(StopRequested) as stop:
        train(a_student(), random_rows(16), recipe(), tmp_path, stop=lambda: True, saves=False)

    assert stop.value.step == 0


def test_a_gpu_too_small_for_one_row_is_reported(tmp_path: Path):
    with pytest.raises(OutOfMemory, match=r"too little memory to train on one row; lower spec\.task\.maxLength"):
        train(_Small(room=0), random_rows(45), recipe(), tmp_path, losses=_squares)


def test_a_loss_that_is_no_number_ends_the_training_at_its_step(tmp_path: Path):
    steps = iter(range(1, 100))

    def losses(answer: Any, compared: dict[str, Tensor]) -> Tensor:
        return row_losses(answer, compared) * (float("nan") if next(steps) == 5 else 1.0)

    with pytest.raises(TrainingDiverged, match=r"^the loss became nan at step 5; lower training\.learningRate"):
        train(a_student(), random_rows(61), recipe(), tmp_path, losses=losses)


def test_a_saved_state_holds_no_pickle(tmp_path: Path):
    looks, kept = iter(range(1, 100)), []  # type: ignore[var-annotated]

    with pytest.raises(StopRequested):
        train(a_student(), random_rows(61), recipe(), tmp_path, stop=lambda: next(looks) >= 3, keep=kept)

    assert {file.suffix for file in kept[-1][0].iterdir()} == {".safetensors", ".json"}
