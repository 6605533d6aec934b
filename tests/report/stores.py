"""Stores with chains of any length and ending, written through the contract's own types, as a trainer would leave them.

The tests in tests/trainer and tests/cli make reports from stores of real trainings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from distillchain_api.failures import FailureClass
from distillchain_api.layout import pass_manifest_key
from distillchain_api.wire.export import ExportRecord, MeasuredFormat
from distillchain_api.wire.manifest import (
    FileEntry,
    FurtherTeacher,
    Manifest,
    Metrics,
    ModelFacts,
    RunFacts,
    SelectedEpoch,
    SplitFacts,
)
from distillchain_api.wire.pass_manifest import PassManifest
from distillchain_api.wire.records import (
    EXAMPLES_FILE,
    HISTORY_FILE,
    PREDICTIONS_FILE,
    TEACHER_PREDICTIONS_FILE,
    TEST_PREDICTIONS_FILE,
    Example,
    HistoryPoint,
    Prediction,
)
from distillchain_report.build import build_report
from distillchain_report.load import WantedStage, load_stages
from distillchain_report.model import Report
from distillchain_report.sections.text_classification.scores import difference
from distillchain_store.folder import FileStore

MOMENT = "2026-01-01T12:00:00Z"
ROOT_PARAMETERS = 335_000_000
MARKUP = "<script>alert('x')</script><img src=http://x.example/y.png onerror=alert(1)>\"'&amp;|`*"


@dataclass(frozen=True)
class Relay:
    """A chain to write.

    Attributes:
        accuracies: of the root teacher, then of each committed student.
        waiting: stages that are not committed.
        files: which predictions and other files the stages have.
        fine_tuned: the root teacher is a stage of its own.
        doubt: why the last student may not have learned the task.
        warnings: of each stage, by name.
        latency: p50 and p95 of every model, in milliseconds.
        never: classes that the last student never predicts, each with the class that it predicts instead.
        exported: stages with an export, in both formats.
        exported_rows: rows on which the exports were measured; None: all of validation.
        selected: stages whose epoch was chosen on validation.
        further_teachers: the root teacher teaches these stages too, with this share.
        one_folder: as older releases stored an attempt: results beside the files of the model.
    """

    names: Sequence[str] = ("mini", "tiny", "femto")
    accuracies: Sequence[float] = (0.93, 0.92, 0.89, 0.83)
    labels: Sequence[str] = ("negative", "positive")
    waiting: Sequence[WantedStage] = ()
    chain: str = "ml/sst2-femto"
    metric: str = "accuracy"
    rows: int = 872
    epochs: int = 4
    device: str = "NVIDIA A10"
    text: str = "a film of quiet, unhurried charm that still earns its tears"
    files: Sequence[str] = (
        HISTORY_FILE,
        PREDICTIONS_FILE,
        TEST_PREDICTIONS_FILE,
        TEACHER_PREDICTIONS_FILE,
        EXAMPLES_FILE,
    )
    fine_tuned: bool = False
    doubt: str | None = None
    warnings: Mapping[str, list[str]] = field(default_factory=dict)
    latency: tuple[float, float] | None = None
    never: Mapping[str, str] = field(default_factory=dict)
    one_folder: bool = False
    exported: Sequence[str] = ()
    exported_rows: int | None = None
    selected: Mapping[str, SelectedEpoch] = field(default_factory=dict)
    further_teachers: Mapping[str, float] = field(default_factory=dict)


def digest_of(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


FAILED = WantedStage(
    "femto",
    digest_of("femto"),
    phase="Failed",
    message="student femto: accuracy 0.61 is below spec.stages[2].gate.minMetric 0.79",
    failure_class=FailureClass.GATE_NOT_MET,
)
PENDING = WantedStage("femto", digest_of("femto"))


def write_relay(folder: Path, relay: Relay) -> FileStore:
    """Writes the chain into the store in `folder`."""
    truth, answers = _answers(relay)
    names = ["teacher", *relay.names] if relay.fine_tuned else list(relay.names)
    step = 4.2 if len(answers) <= 4 else 2.1
    parameters = [int(ROOT_PARAMETERS / step**place) for place in range(len(answers))]
    models = [
        _facts(relay, truth, logits, count, None if place == 0 and not relay.fine_tuned else place)
        for place, (logits, count) in enumerate(zip(answers, parameters, strict=True))
    ]
    first = 0 if relay.fine_tuned else 1
    for place in range(first, len(answers)):
        name = names[place - first]
        teacher = place - 1 if place else None
        doubt = relay.doubt if place == len(answers) - 1 else None
        student = models[place].model_copy(update={"digest": digest_of(name), "doubt": doubt})
        before = None
        if teacher is not None:
            taught_by = digest_of(names[teacher - first]) if teacher >= first else None
            before = models[teacher].model_copy(update={"digest": taught_by})
        contents = _files(relay, truth, answers[place], None if teacher is None else answers[teacher])
        _commit(folder, relay, name, student, before, contents, place)
    return FileStore(f"file://{folder}")


def wanted_of(relay: Relay) -> list[WantedStage]:
    committed = ["teacher", *relay.names] if relay.fine_tuned else list(relay.names)
    return [*[WantedStage(name, digest_of(name)) for name in committed], *relay.waiting]


def report_of(folder: Path, relay: Relay, **more: Any) -> Report:
    """The report on a chain that was written to `folder`."""
    store = FileStore(f"file://{folder}")
    arguments = {"storage": store.uri, "generated_at": MOMENT, "version": "0.1.0", **more}
    return build_report(relay.chain, load_stages(store, wanted_of(relay)), **arguments)


def a_report(folder: Path, **parts: Any) -> Report:
    relay = replace(Relay(), **parts)
    write_relay(folder, relay)
    return report_of(folder, relay)


def _answers(relay: Relay) -> tuple[NDArray[np.int64], list[NDArray[np.float32]]]:
    """True classes, and each model's logits [rows, classes]; many models are wrong on a hard row."""
    dice = np.random.default_rng(7)
    classes = len(relay.labels)
    truth = dice.integers(0, classes, relay.rows)
    truth[:classes] = np.arange(classes)
    hardness = dice.random(relay.rows)
    found = []
    for accuracy in relay.accuracies:
        score = hardness + dice.normal(0, 0.05, relay.rows)
        wrong = np.argsort(-score)[: round((1 - accuracy) * relay.rows)]
        guess = truth.copy()
        guess[wrong] = (truth[wrong] + dice.integers(1, classes, len(wrong))) % classes
        logits = dice.normal(0, 0.3, (relay.rows, classes))
        logits[np.arange(relay.rows), guess] = 1.2 + 2.5 * dice.random(relay.rows)
        found.append(logits.round(6).astype(np.float32))
    for label, instead in relay.never.items():
        column, other = relay.labels.index(label), relay.labels.index(instead)
        chosen = found[-1].argmax(-1) == column
        found[-1][chosen, other] = found[-1][chosen, column] + 1
    return truth, found


def macro_f1(truth: NDArray[np.int64], guess: NDArray[np.int64]) -> float:
    """Mean F1 of the classes that occur in the truth."""
    return 1 + difference("macroF1", truth, teacher=truth, student=guess)


def _facts(
    relay: Relay, truth: NDArray[np.int64], logits: NDArray[np.float32], parameters: int, place: int | None
) -> ModelFacts:
    guess = logits.argmax(-1)
    metrics = {"accuracy": float((guess == truth).mean()), "macroF1": macro_f1(truth, guess)}
    return ModelFacts(
        source="hf://org/teacher" if place is None else f"s3://models/relay/{place}",
        revision="sha256:" + digest_of(f"weights {place}"),
        parameters=parameters,
        size_bytes=4 * parameters,
        metrics=Metrics(validation=metrics, test=metrics),
        examples_per_second=1e11 / parameters,
        latency_p50_ms=relay.latency[0] if relay.latency else None,
        latency_p95_ms=relay.latency[1] if relay.latency else None,
    )


def _files(
    relay: Relay, truth: NDArray[np.int64], student: NDArray[np.float32], teacher: NDArray[np.float32] | None
) -> dict[str, str]:
    def predictions(logits: NDArray[np.float32]) -> str:
        rows = zip(truth, logits.argmax(-1), logits, strict=True)
        return _lines(
            Prediction(
                row=row, label=relay.labels[label], predicted=relay.labels[guess], logits=[float(x) for x in values]
            )
            for row, (label, guess, values) in enumerate(rows)
        )

    contents = {HISTORY_FILE: _lines(_history(relay, truth, student)), PREDICTIONS_FILE: predictions(student)}
    contents[TEST_PREDICTIONS_FILE] = predictions(student)  # test has the same rows here
    if teacher is not None:
        contents[TEACHER_PREDICTIONS_FILE] = predictions(teacher)
        contents[EXAMPLES_FILE] = _lines(Example(row=row, text=[relay.text]) for row in range(relay.rows))
    return {name: content for name, content in contents.items() if name in relay.files}


def _history(relay: Relay, truth: NDArray[np.int64], student: NDArray[np.float32]) -> list[HistoryPoint]:
    final = float((student.argmax(-1) == truth).mean())
    dice = np.random.default_rng(3)
    points = []
    for step in range(1, 101):
        loss = 0.1 + 0.6 * float(np.exp(-step / 25)) + 0.03 * float(dice.random())
        points.append(HistoryPoint(step=step, epoch=relay.epochs * step / 100, loss=loss, learning_rate=1e-4))
    for epoch in range(1, relay.epochs + 1):
        value = final - 0.08 * (relay.epochs - epoch) / relay.epochs
        metrics = {"accuracy": value, "macroF1": value}
        points.append(HistoryPoint(step=25 * epoch, epoch=float(epoch), validation=metrics))
    return points


def _lines(documents: Any) -> str:
    return "".join(document.to_json() + "\n" for document in documents)


def _commit(
    folder: Path,
    relay: Relay,
    name: str,
    student: ModelFacts,
    teacher: ModelFacts | None,
    contents: dict[str, str],
    place: int,
) -> None:
    digest = digest_of(name)
    attempt = folder / "stages" / digest / "attempts" / "a1"
    entries = []
    files = {f"results/{name}": content for name, content in contents.items()} | {"checkpoint/config.json": "{}"}
    # Older releases kept all files in one folder.
    for path, content in (contents if relay.one_folder else files).items():
        (attempt / path).parent.mkdir(parents=True, exist_ok=True)
        (attempt / path).write_text(content, encoding="utf-8")
        raw = content.encode()
        entries.append(FileEntry(path=path, size_bytes=len(raw), sha256=hashlib.sha256(raw).hexdigest()))
    training = {"epochs": relay.epochs, "batchSize": 32, "learningRate": 1e-4, "scheduler": "linear", "seed": 42}
    recipe: dict[str, Any] = {
        "task": {
            "type": "TextClassification",
            "dataset": {"uri": "s3://data/sst2"},
            "labels": list(relay.labels),
            "metric": relay.metric,
        },
        "training": training,
    }
    if teacher is not None:
        recipe["distillation"] = {"temperature": 1.0, "alpha": 1.0}
    split = SplitFacts(rows=relay.rows, sha256=digest_of("rows"))
    manifest = Manifest(
        digest=digest,
        chain=relay.chain,
        stage=name,
        attempt="a1",
        checkpoint=f"s3://models/relay/stages/{digest}/attempts/a1/checkpoint",
        files=entries,
        teacher=teacher,
        further_teachers=[
            FurtherTeacher(name="teacher", share=share, facts=teacher)
            for share in [relay.further_teachers.get(name)]
            if share and teacher
        ],
        student=student,
        pretrained=place % 3 != 0,
        start=f"hf://google/bert_uncased_L-{12 - place} ({digest_of('start')})",
        data_revision="sha256:" + digest_of("data"),
        data={"train": split.model_copy(update={"rows": 67349}), "validation": split, "test": split},
        recipe=recipe,
        run=RunFacts(
            started_at=MOMENT,
            elapsed_s=4200.0 / (place + 1),
            model_s=3900.0 / (place + 1),
            examples_per_second=400.0 * (place + 1),
            steps=8420,
            final_loss=0.11,
            logits_reused=place == 2,
            resumed=place == 1,
            selected=relay.selected.get(name),
        ),
        environment={"distillchain": "0.1.0", "python": "3.12.1", "torch": "2.9.0", "device": relay.device},
        warnings=relay.warnings.get(name, []),
        committed_at=MOMENT,
    )
    (attempt.parents[1] / "manifest.json").write_text(manifest.to_json(), encoding="utf-8")
    if name in relay.exported:
        _export(attempt.parents[1] / "exports", manifest, rows=relay.exported_rows)


def rewrite_manifest(folder: Path, name: str, **parts: Any) -> None:
    """Replaces fields of a manifest."""
    path = folder / "stages" / digest_of(name) / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | parts))


def write_pass(folder: Path, name: str, *, elapsed_s: float, processes: int) -> Path:
    """The pass that has asked the teacher of a stage. Returns: the file of its manifest."""
    path = folder / "stages" / digest_of(name) / "manifest.json"
    stage, digest = Manifest.parse(path.read_text()), digest_of(f"pass of {name}")
    assert stage.teacher is not None
    run = stage.run.model_copy(update={"teacher_pass": digest})
    path.write_text(stage.model_copy(update={"run": run}).to_json())
    manifest = PassManifest(
        digest=digest,
        chain=stage.chain,
        stage=f"{name}-pass",
        attempt="p1",
        files=[],
        teacher=stage.teacher,
        teacher_files=digest_of("files"),
        data=stage.data,
        rows=stage.data["train"].rows,
        logits=digest_of("logits"),
        elapsed_s=elapsed_s,
        examples_per_second=1000.0,
        processes=processes,
        environment=stage.environment,
        committed_at=MOMENT,
    )
    written = folder / pass_manifest_key(digest)
    written.parent.mkdir(parents=True)
    written.write_text(manifest.to_json())
    return written


def _export(folder: Path, manifest: Manifest, *, rows: int | None) -> None:
    """The record of an export; a report does not read its files."""
    folder.mkdir()
    speeds: dict[Literal["pytorch", "onnx", "onnx-int8"], tuple[str | None, float]] = {
        "pytorch": (None, 900.0),
        "onnx": ("model.onnx", 1800.0),
        "onnx-int8": ("model.int8.onnx", 2700.0),
    }
    record = ExportRecord(
        digest=manifest.digest,
        weights=manifest.student.revision,
        attempt="e1",
        files=[],
        formats=[
            MeasuredFormat(
                format=kind,
                path=path,
                size_bytes=manifest.student.size_bytes,
                validation=manifest.student.metrics.validation,
                examples_per_second=speed,
                different_predictions=3 if kind == "onnx-int8" else 0,
                largest_difference=0.0 if kind == "pytorch" else 2e-6,
            )
            for kind, (path, speed) in speeds.items()
        ],
        rows=rows,
        environment={},
        created_at=MOMENT,
    )
    (folder / "onnx-int8.json").write_text(record.to_json(), encoding="utf-8")
