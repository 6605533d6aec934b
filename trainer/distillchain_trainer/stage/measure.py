"""A model measured on splits, with its speed: the numbers that manifests hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distillchain_api.wire.answer import ProgressPhase
from distillchain_api.wire.manifest import Metrics, ModelFacts
from distillchain_trainer.data.split import Split
from distillchain_trainer.engine.passes.shared_forward import all_outputs, shared_latency_ms
from distillchain_trainer.errors import CheckpointInvalid, TrainingDiverged
from distillchain_trainer.models.checkpoints import Checkpoint
from distillchain_trainer.models.loaded import Loaded
from distillchain_trainer.stage.context import Context
from distillchain_trainer.stage.run_stats import RunStats
from distillchain_trainer.tasks.interface import Measurement, TaskAdapter


@dataclass(frozen=True)
class Origin:
    """Where a measured model comes from; see ModelFacts."""

    source: str
    revision: str
    digest: str | None
    size_bytes: int


@dataclass(frozen=True)
class MeasuredTeacher:
    """What is left of a teacher when the student is trained.

    Attributes:
        splits: its measurements on validation and, where there is one, on test.
    """

    facts: ModelFacts
    splits: dict[str, Measurement]

    @property
    def on_validation(self) -> Measurement:
        """Its answers on validation."""
        return self.splits["validation"]


@dataclass(frozen=True)
class Measurer:
    """Measures the models of one stage."""

    context: Context
    task: TaskAdapter
    stats: RunStats

    def split(
        self,
        loaded: Loaded,
        split: Split,
        phase: ProgressPhase,
        *,
        checkpoint: Checkpoint | None = None,
        interruptible: bool = False,
    ) -> tuple[Measurement, float]:
        """The model on one split, and the rows per second of its forward passes on one device.

        Args:
            checkpoint: where the model was loaded from and is unchanged since; NaN outputs are its fault.
        Raises: CheckpointInvalid, TrainingDiverged; StopRequested if `interruptible`.
        """
        world, signals = self.context.world, self.context.signals
        # A rank that stopped here by itself would leave the others waiting for its outputs. Only what all ranks agree
        # on ends an interruptible measurement, whose rows are encoded before.
        agreed_only = interruptible and not world.is_alone
        outputs, device_s = all_outputs(
            loaded.model,
            self.task.encode(split, loaded, check=(lambda: None) if agreed_only else signals.raise_if_requested),
            self.task.measured_of,
            # In the precision of the training, for teacher and student alike, so that their metrics can be compared.
            precision=self.context.order.training.precision,
            on_batch=self.context.batch_reporter(phase),
            world=world,
            # Elsewhere a signal raises by itself.
            stop=lambda: interruptible and signals.requested,
        )
        # Before the metrics: argmax takes NaN for the largest value, so a broken model would get an accuracy.
        numbers_check(split, checkpoint)(outputs)
        self.stats.model_s += device_s / world.size
        return self.task.measure(split, loaded.in_task_order(outputs)), len(split) / max(device_s, 1e-9)

    def facts(
        self,
        loaded: Loaded,
        origin: Origin,
        splits: dict[str, Split],
        phase: ProgressPhase,
        *,
        checkpoint: Checkpoint | None = None,
    ) -> tuple[ModelFacts, dict[str, Measurement]]:
        """The model on validation and, where there is one, test: facts for the manifest, and the measurements."""
        measured: dict[str, Measurement] = {}
        rates: dict[str, float] = {}
        for name, split in splits.items():
            # No manifest has metrics on train, and a pass over its rows would take long.
            if name != "train":
                measured[name], rates[name] = self.split(loaded, split, phase, checkpoint=checkpoint)
        p50, p95 = self._latency_ms(loaded, splits["validation"])
        test = measured.get("test")
        facts = ModelFacts(
            source=origin.source,
            revision=origin.revision,
            digest=origin.digest,
            parameters=loaded.parameters,
            size_bytes=origin.size_bytes,
            metrics=Metrics(validation=measured["validation"].metrics, test=test.metrics if test else None),
            # Of validation, which every chain has; test is optional.
            examples_per_second=round(rates["validation"], 2),
            latency_p50_ms=round(p50, 3),
            latency_p95_ms=round(p95, 3),
            doubt=measured["validation"].doubt,
        )
        return facts, measured

    def _latency_ms(self, loaded: Loaded, split: Split) -> tuple[float, float]:
        """By itself and at batch size 1: rates of large batches do not show what one request takes."""
        return shared_latency_ms(
            self.context.world,
            loaded.model,
            self.task.encode(split, loaded, check=self.context.signals.raise_if_requested),
            self.task.measured_of,
            precision=self.context.order.training.precision,
        )


def numbers_check(split: Split, checkpoint: Checkpoint | None) -> Callable[[NDArray[np.float32]], None]:
    """A check of outputs on `split`.

    It raises where one is NaN or infinite: CheckpointInvalid for a checkpoint as it was loaded, else TrainingDiverged.
    """

    def check(outputs: NDArray[np.float32]) -> None:
        if np.isfinite(outputs).all():
            return
        what = f"outputs on {split.name} are not numbers (NaN or infinite)"
        # Nothing has changed these weights since they were loaded, so the fault is not that of the training.
        if checkpoint is not None:
            raise CheckpointInvalid(
                f"{checkpoint.field}: {checkpoint.uri}: its {what}; copy it again, or use precision float32"
            )
        raise TrainingDiverged(
            f"the student's {what}; lower training.learningRate, add warmupRatio, or use precision float32"
        )

    return check
