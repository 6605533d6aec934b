"""What is written down of a stage: facts of its models, and the manifest. No store, no training."""

from __future__ import annotations

import datetime
import platform
from dataclasses import dataclass

import torch
import transformers

from distillchain_api.layout import attempt_prefix
from distillchain_api.wire.manifest import Manifest, Metrics, ModelFacts, RunFacts
from distillchain_api.wire.work_order import WorkOrder
from distillchain_trainer import __version__
from distillchain_trainer.tasks.text_classification import chance as gates
from distillchain_trainer.tasks.text_classification.evaluate import Measurement
from distillchain_trainer.tasks.text_classification.models import Loaded
from distillchain_trainer.tasks.text_classification.rows import TaskData


@dataclass
class Tally:
    """Seconds in models, and how the training stands; earlier attempts' included."""

    model_s: float = 0.0
    elapsed_before_s: float = 0.0
    train_s: float = 0.0
    final_loss: float = 0.0
    steps: int = 0
    logits_reused: bool = False
    resumed: bool = False


def build_manifest(
    order: WorkOrder,
    data: TaskData,
    *,
    attempt: str,
    pretrained: bool,
    start: str,
    student: ModelFacts,
    teacher: ModelFacts | None,
    tally: Tally,
    started_at: str,
    elapsed_s: float,
) -> Manifest:
    """The manifest of an attempt, still without files."""
    trained = len(data.train) * order.training.epochs
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    recipe = {
        "task": order.task.to_document(),
        "student": order.student.to_document(),
        "training": order.training.to_document(),
    }
    if order.distillation is not None:
        recipe["distillation"] = order.distillation.to_document()
    return Manifest(
        digest=order.digest,
        chain=order.chain,
        stage=order.stage,
        attempt=attempt,
        checkpoint=f"{order.storage.uri}/{attempt_prefix(order.digest, attempt)}",
        files=[],
        teacher=teacher,
        student=student,
        pretrained=pretrained,
        start=start,
        data_revision=data.revision,
        data={name: split.facts for name, split in data.splits.items()},
        recipe=recipe,
        run=RunFacts(
            started_at=started_at,
            elapsed_s=round(elapsed_s, 3),
            model_s=round(tally.model_s, 3),
            examples_per_second=round(trained / max(tally.train_s, 1e-9), 2),
            steps=tally.steps,
            final_loss=tally.final_loss,
            logits_reused=tally.logits_reused,
            resumed=tally.resumed,
        ),
        environment=_environment(),
        committed_at=now,
    )


def facts_of(
    loaded: Loaded,
    source: str,
    revision: str,
    digest: str | None,
    weight_bytes: int,
    measured: dict[str, Measurement],
    *,
    metric: str,
) -> ModelFacts:
    """A model as it was measured, on validation and maybe test, with what `metric` leaves in doubt."""
    validation, test = measured["validation"], measured.get("test")
    return ModelFacts(
        source=source,
        revision=revision,
        digest=digest,
        parameters=loaded.parameters,
        size_bytes=weight_bytes,
        metrics=Metrics(validation=validation.metrics, test=test.metrics if test else None),
        examples_per_second=round(validation.examples_per_second, 2),
        doubt=gates.doubt_of(
            validation.metrics["accuracy"],
            metric=metric,
            classes=validation.classes.tolist(),
            predicted=validation.predicted.tolist(),
        ),
    )


def _environment() -> dict[str, str]:
    gpu = torch.cuda.is_available()
    return {
        "distillchain": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": torch.cuda.get_device_name(0) if gpu else f"cpu ({torch.get_num_threads()} threads)",
    }
