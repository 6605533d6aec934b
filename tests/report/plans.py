"""Commits the stages of a plan to a folder, with predictions of a chosen accuracy and without a training."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from distillchain_api.graph import PlannedStage
from distillchain_api.wire.manifest import FileEntry, Manifest, Metrics, ModelFacts, RunFacts, SplitFacts
from distillchain_api.wire.records import PREDICTIONS_FILE, TEACHER_PREDICTIONS_FILE, Prediction
from distillchain_api.wire.work_order import WorkOrder
from report.stores import MOMENT, digest_of

ROOT = "teacher"
LABELS = ("negative", "positive")


def commit_stages(
    folder: Path,
    stages: Sequence[PlannedStage],
    accuracies: Mapping[str, float],
    *,
    parameters: Mapping[str, int],
    rows: int = 800,
    root: str = ROOT,
    device: str = "NVIDIA A10",
) -> None:
    """Writes a commit for each stage.

    Args:
        accuracies, parameters: by the name of the model, and of the root teacher as `teacher`.
        rows: of validation. Models of a similar accuracy are right on mostly the same rows.
        root: decides the weights of the root teacher.
    """
    models = {stage.digest: stage.name for stage in stages}
    for stage in stages:
        order = stage.work_order
        taught_by = models.get(order.teacher.digest or "", ROOT) if order.teacher else None
        names = {PREDICTIONS_FILE: stage.name} | ({TEACHER_PREDICTIONS_FILE: taught_by} if taught_by else {})
        # Two seeds of one recipe are right on other rows.
        luck = {stage.name: stage.digest, taught_by: order.teacher.digest if order.teacher else None}
        files = {file: _predictions(luck[name] or name, accuracies[name], rows) for file, name in names.items()}
        facts = {name: _facts(name, accuracies[name], parameters[name]) for name in names.values()}
        if taught_by == ROOT:
            facts[ROOT] = facts[ROOT].model_copy(update={"revision": f"sha256:{digest_of(root)}"})
        teacher = facts[taught_by] if taught_by else None
        if teacher and order.teacher:
            teacher = teacher.model_copy(update={"digest": order.teacher.digest})
        _commit(folder, order, facts[stage.name].model_copy(update={"digest": stage.digest}), teacher, files, device)


def _right(luck: str, accuracy: float, rows: int) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Which rows a model answers right: the easy ones, and a few others by luck."""
    dice = np.random.default_rng(int(digest_of(luck)[:8], 16))
    hardness = np.arange(rows) / rows + dice.normal(0, 0.05, rows)
    right = np.zeros(rows, dtype=np.bool_)
    right[np.argsort(hardness)[: round(accuracy * rows)]] = True
    return right


def _predictions(luck: str, accuracy: float, rows: int) -> str:
    truth = np.random.default_rng(7).integers(0, 2, rows)
    guesses = np.where(_right(luck, accuracy, rows), truth, 1 - truth)
    return "".join(
        Prediction(
            row=row, label=LABELS[label], predicted=LABELS[guess], logits=[float(guess == 0), float(guess == 1)]
        ).to_json()
        + "\n"
        for row, (label, guess) in enumerate(zip(truth, guesses, strict=True))
    )


def _facts(name: str, accuracy: float, parameters: int) -> ModelFacts:
    return ModelFacts(
        source=f"hf://org/{name}",
        revision=f"sha256:{digest_of(name)}",
        parameters=parameters,
        size_bytes=4 * parameters,
        metrics=Metrics(validation={"accuracy": accuracy, "macroF1": accuracy}),
    )


def _commit(
    folder: Path,
    order: WorkOrder,
    student: ModelFacts,
    teacher: ModelFacts | None,
    files: Mapping[str, str],
    device: str,
) -> None:
    attempt = folder / "stages" / order.digest / "attempts" / "a1"
    entries = []
    contents = {"checkpoint/config.json": "{}"} | {f"results/{name}": text for name, text in files.items()}
    for name, content in contents.items():
        (attempt / name).parent.mkdir(parents=True, exist_ok=True)
        (attempt / name).write_text(content)
        raw = content.encode()
        entries.append(FileEntry(path=name, size_bytes=len(raw), sha256=hashlib.sha256(raw).hexdigest()))
    recipe = {"task": order.task, "student": order.student, "training": order.training}
    if teacher and order.distillation:
        recipe["distillation"] = order.distillation
    rows = len(files[PREDICTIONS_FILE].splitlines())
    manifest = Manifest(
        digest=order.digest,
        chain=order.chain,
        stage=order.stage,
        attempt="a1",
        checkpoint=f"file://{attempt}/checkpoint",
        files=entries,
        teacher=teacher,
        student=student,
        pretrained=True,
        start=student.source,
        data_revision="sha256:" + digest_of("data"),
        data={"train": SplitFacts(rows=9000, sha256=digest_of("train")),
              "validation": SplitFacts(rows=rows, sha256=digest_of(f"validation {rows}"))},
        recipe={name: part.to_document() for name, part in recipe.items()},
        run=RunFacts(started_at=MOMENT, elapsed_s=1800.0, model_s=1700.0, examples_per_second=400.0, steps=900,
                     final_loss=0.1, logits_reused=False, resumed=False),
        environment={"device": device},
        committed_at=MOMENT,
    )  # fmt: skip
    (attempt.parents[1] / "manifest.json").write_text(manifest.to_json())
