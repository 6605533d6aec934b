"""Training of one student: transformers' Trainer, the teacher's logits joined by example, states kept on the way.

DDP, bf16, accumulation and resume are the Trainer's; ours are the loss, the order of examples and when a state is kept.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.trainer_pt_utils import get_length_grouped_indices as _grouped

from distillchain_api.resource.spec import Distillation, Training
from distillchain_api.wire.manifest import SplitMetrics
from distillchain_trainer.engine.encode import Encoded
from distillchain_trainer.engine.history import History
from distillchain_trainer.errors import StopRequested, TrainingDiverged
from distillchain_trainer.objectives.soft_targets import distillation_loss

log = logging.getLogger(__name__)

DIVERGED_REMEDY = "lower training.learningRate, add warmupRatio, or use precision float32"
WEIGHTS = "model.safetensors"
SAVE_AGAIN_S = 60.0


@dataclass(frozen=True)
class Batches:
    """The training rows.

    Attributes:
        teacher: logits [rows, classes] in the order of the task; None: the labels alone teach.
    """

    encoded: Encoded
    classes: Sequence[int]
    teacher: NDArray[np.float32] | None

    def collate(self, rows: list[int]) -> dict[str, Tensor]:
        """Inputs of the model, `labels` and `teacher_logits` of some rows."""
        batch = self.encoded.batch(rows)
        batch["labels"] = torch.tensor([self.classes[row] for row in rows])
        if self.teacher is not None:
            batch["teacher_logits"] = torch.from_numpy(self.teacher[rows])
        return batch


@dataclass(frozen=True)
class Standing:
    """Where training stands, for progress lines and saved states."""

    step: int
    of: int
    epoch: float
    loss: float
    train_s: float
    examples_per_second: float
    eta_s: float


class _Rows(Dataset[int]):
    """Row numbers; `collate` turns them into tensors, a batch at a time."""

    def __init__(self, size: int) -> None:
        self._size = size

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, row: int) -> int:
        return row


class _LengthGroups(Sampler[int]):
    """Rows in batches of about equal length, shuffled by seed and epoch alone: a resumed epoch has the same order."""

    def __init__(self, lengths: list[int], *, group: int, seed: int) -> None:
        self._lengths, self._group, self._seed = lengths, group, seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed((self._seed << 20) + self.epoch)
        rows: list[int] = _grouped(  # type: ignore[no-untyped-call]  # half typed
            self._lengths, self._group, generator=generator
        )
        return iter(rows)


class _StudentTrainer(Trainer):
    """The Trainer with our loss and order."""

    loss_is_scaled_for_ga = False  # the loss is a mean over one batch

    def __init__(
        self, model: Any, arguments: TrainingArguments, watch: _Watch, rows: Batches, distillation: Distillation | None
    ) -> None:
        super().__init__(
            model=model,
            args=arguments,
            callbacks=[watch],
            train_dataset=_Rows(len(rows.encoded)),
            data_collator=rows.collate,
        )
        self.remove_callback(PrinterCallback)
        self._distillation = distillation
        # The loss of a micro-batch counts by its share of the step, as the Trainer divides it (training_step).
        self.sampler = _LengthGroups(
            rows.encoded.lengths,
            group=self.args.train_batch_size * self.args.gradient_accumulation_steps,
            seed=self.args.seed,
        )
        self.step_loss = 0.0

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:  # noqa: ARG002
        """Not the Trainer's own: it saves under the names of the checkpoint that the model came from (gamma and beta of
        older BERTs), and passes over them in silence when it resumes. transformers 5.24."""
        save_weights(self.model, Path(output_dir or str(self.args.output_dir)))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """See _save."""
        load_weights(model or self.model, Path(resume_from_checkpoint))

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:  # noqa: ARG002 - the Trainer's signature
        return self.sampler

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,  # noqa: ARG002 - the Trainer's signature; our loss is a mean over the batch
    ) -> Any:
        labels, teacher = inputs.pop("labels"), inputs.pop("teacher_logits", None)
        outputs = model(**inputs)
        loss = distillation_loss(
            outputs.logits,
            teacher,
            labels,
            temperature=self._distillation.temperature if self._distillation else 1.0,
            alpha=self._distillation.alpha if self._distillation else 0.0,
        )
        return (loss, outputs) if return_outputs else loss

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        value = float(loss)
        if not math.isfinite(value):
            raise TrainingDiverged(f"the loss became {value} at step {self.state.global_step + 1}; {DIVERGED_REMEDY}")
        self.step_loss += value
        return loss

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:  # noqa: ARG002 - the Trainer's signature
        return 0  # counting parameters at every step costs a tenth of a small student's time, and nobody reads it


class _Watch(TrainerCallback):
    """Reports, decides when a state is kept, and stops when told to."""

    def __init__(
        self,
        *,
        batch: int,
        rows: int,
        before_s: float,
        save_interval_s: float,
        stop: Callable[[], bool],
        on_step: Callable[[Standing], None],
        save: Callable[[Path, Standing], bool],
        history: History,
        validate: Callable[[], SplitMetrics],
    ) -> None:
        self.trainer: _StudentTrainer | None = None
        self._batch, self._rows = batch, rows
        self._before_s, self._save_interval_s = before_s, save_interval_s
        self._stop, self._on_step, self._save = stop, on_step, save
        self._history, self._validate = history, validate
        self._recent: list[float] = []
        self.loss = 0.0
        self._first_step = 0
        self._away_s = 0.0  # saving and measuring: not training
        self._started = self._saved = time.monotonic()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        self._first_step = state.global_step
        self._started = self._saved = time.monotonic()

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        assert self.trainer is not None
        steps_an_epoch = max(1, state.max_steps // args.num_train_epochs)
        self.trainer.sampler.epoch = int(state.global_step // steps_an_epoch)
        if state.global_step and state.global_step % steps_an_epoch == 0:  # also where a resumed training goes on
            began = time.monotonic()
            with suppress(StopRequested):  # the next step saves and stops; who resumes there measures this epoch never
                self._history.measured(state.global_step, float(self.trainer.sampler.epoch), self._validate())
            self._away_s += time.monotonic() - began

    def on_step_end(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:  # noqa: ARG002
        assert self.trainer is not None
        self._recent = [*self._recent[-49:], self.trainer.step_loss]
        rate = float(optimizer.param_groups[0]["lr"]) if optimizer is not None else None
        self._history.trained(state.global_step, state.max_steps, float(state.epoch), self.trainer.step_loss, rate)
        self.trainer.step_loss = 0.0
        self.loss = sum(self._recent) / len(self._recent)
        self._on_step(self.standing(state))
        last = state.global_step >= state.max_steps
        if self._stop() and not last:
            control.should_save = control.should_training_stop = True
        elif time.monotonic() - self._saved > self._save_interval_s and not last:
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        began = time.monotonic()
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        saved = self._save(folder, self.standing(state))
        now = time.monotonic()
        self._saved = now if saved else now - self._save_interval_s + min(self._save_interval_s, SAVE_AGAIN_S)
        self._away_s += now - began

    def standing(self, state: Any) -> Standing:
        """Where training stands after this step."""
        here_s = time.monotonic() - self._started - self._away_s
        steps = state.global_step - self._first_step
        return Standing(
            step=state.global_step,
            of=state.max_steps,
            epoch=float(state.epoch or 0.0),
            loss=self.loss,
            train_s=self._before_s + here_s,
            examples_per_second=steps * self._batch / max(here_s, 1e-9),
            eta_s=(state.max_steps - state.global_step) * here_s / max(steps, 1),
        )


def train(
    model: Any,
    rows: Batches,
    *,
    training: Training,
    distillation: Distillation | None,
    folder: Path,
    resume_from: Path | None,
    before_s: float,
    save_interval_s: float,
    stop: Callable[[], bool],
    on_step: Callable[[Standing], None],
    save: Callable[[Path, Standing], bool],
    history: History,
    validate: Callable[[], SplitMetrics],
) -> Standing:
    """Trains `model` in place to the end.

    Args:
        history: gets the losses, and what `validate` says at the end of each epoch but the last, which is evaluated.
        validate: may raise StopRequested: then the epoch is not measured.
        before_s: seconds of training that earlier attempts have done.
        resume_from: folder of a saved state.
        save: stores the state in a folder; called every `save_interval_s`, sooner after it could not (False), and when
            stopped.
    Raises: StopRequested once the state is saved; TrainingDiverged at the step whose loss is no number.
    """
    set_seed(training.seed)
    watch = _Watch(
        batch=training.batch_size * training.gradient_accumulation,
        rows=len(rows.encoded),
        before_s=before_s,
        save_interval_s=save_interval_s,
        stop=stop,
        on_step=on_step,
        save=save,
        history=history,
        validate=validate,
    )
    trainer = _StudentTrainer(model, _arguments(training, folder), watch, rows, distillation)
    watch.trainer = trainer
    trainer.train(resume_from_checkpoint=str(resume_from) if resume_from else None)
    standing = watch.standing(trainer.state)
    if standing.step < standing.of:
        raise StopRequested(standing.step)
    return standing


def save_weights(model: Any, folder: Path) -> None:
    """Weights alone, for `load_weights`."""
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_model(model, str(folder / WEIGHTS))


def load_weights(model: Any, folder: Path) -> None:
    """Takes over all weights. Raises: RuntimeError when one is missing or left over."""
    safetensors.torch.load_model(model, folder / WEIGHTS)


def _arguments(training: Training, folder: Path) -> TrainingArguments:
    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=training.epochs,
        per_device_train_batch_size=training.batch_size,
        gradient_accumulation_steps=training.gradient_accumulation,
        learning_rate=training.learning_rate,
        weight_decay=training.weight_decay,
        warmup_steps=_warmup(training),
        lr_scheduler_type=training.scheduler if training.scheduler != "constant" else "constant_with_warmup",
        max_grad_norm=training.max_grad_norm,
        bf16=training.precision == "bfloat16",
        seed=training.seed,
        use_cpu=not torch.cuda.is_available(),
        dataloader_num_workers=0,
        dataloader_pin_memory=torch.cuda.is_available(),
        remove_unused_columns=False,
        logging_strategy="no",
        logging_nan_inf_filter=False,
        save_strategy="no",
        save_total_limit=1,
        report_to=[],
        disable_tqdm=True,
    )
    # Where several GPUs are visible the Trainer would split a batch of so many times the size over them
    # (DataParallel): another student than the digest says.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def _warmup(training: Training) -> float:
    """The Trainer reads numbers under 1 as a share, and 1 as one step."""
    return min(training.warmup_ratio, 1 - 1e-9)
