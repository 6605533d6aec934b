"""Our stages: chains on the synthetic data, and what manifest, log and progress say of their speed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distillchain_api.graph import build_plan
from distillchain_api.layout import manifest_key
from distillchain_api.resource.spec import parse_chain
from distillchain_api.wire.work_order import WorkOrder

from .flops import training_mfu
from .monitor import GpuMonitor
from .sizes import BATCH, LABELS, LARGE_LEARNING_RATE, MAX_GRAD_NORM, Sizes
from .trainer_process import Observed, ProgressLine, run_trainer

MODE_CHOSEN = "training mode chosen"
LOGITS_COMPUTED = "teacher logits computed"
CHECKED_EPOCHS = 0.1  # before the end of the last reference epoch: the mean loss there is compared with the reference
FIRST_STEPS = range(50, 61)  # of the large model: the loss of the first line here is the mean of as many steps
UNDECIDED_S = 45.0  # after which a training that names no mode counts as steady


@dataclass(frozen=True)
class StageRun:
    """A stage to run.

    Attributes:
        measure_s: of steady training, after which the trainer is killed; None: it ends by itself.
        limit_s: after which it is stopped.
    """

    part: str
    precision: str
    batch: int
    order: WorkOrder
    rows: int
    tokens_per_row: int | None
    limit_s: float
    measure_s: float | None = None


def student_stage(
    part: str, sizes: Sizes, folder: Path, *, precision: str, epochs: int, final: bool, limit_s: float
) -> StageRun:
    """A student that learns the teacher's logits: `tiny` from a checkpoint, `femto` from new weights."""
    uri = f"file://{folder}"
    student: dict[str, Any] = {"model": f"{uri}/{part}"}
    if part == "femto":
        config = dict(sizes.femto)
        student = {"architecture": {"modelType": "bert-hash", "config": config}, "tokenizer": f"{uri}/tokenizer"}
    training = _training(precision, epochs, BATCH, sizes.learning_rate, "linear")
    document = _chain(folder, "data", {"model": f"{uri}/teacher"}, training, {"name": part, "student": student})
    (planned,) = build_plan(parse_chain(document)).stages
    # Only the last stage of a chain writes a report. The digest does not depend on it.
    order = planned.work_order.model_copy(update={"final": final})
    return StageRun(part, precision, BATCH, order, sizes.rows, None, limit_s)


def large_stage(sizes: Sizes, folder: Path, *, batch: int, limit_s: float) -> StageRun:
    """Fine-tuning of the large model on the labels, as stage zero of a chain."""
    training = _training("bfloat16", sizes.large_epochs, batch, LARGE_LEARNING_RATE, "constant")
    teacher = {"model": f"file://{folder}/large", "fineTune": training}
    # The chain needs a student, which is not trained here.
    student = {"name": "unused", "student": {"model": f"file://{folder}/large"}}
    order = build_plan(parse_chain(_chain(folder, "large-data", teacher, training, student))).stages[0].work_order
    return StageRun(
        "large", "bfloat16", batch, order, sizes.large_rows, sizes.large_tokens, limit_s, sizes.large_measure_s
    )


def _training(precision: str, epochs: int, batch: int, rate: float, scheduler: str) -> dict[str, Any]:
    return {
        "precision": precision,
        "epochs": epochs,
        "batchSize": batch,
        "learningRate": rate,
        "scheduler": scheduler,
        "maxGradNorm": MAX_GRAD_NORM,
    }


def _chain(
    folder: Path, data: str, teacher: dict[str, Any], training: dict[str, Any], stage: dict[str, Any]
) -> dict[str, Any]:
    return {
        "apiVersion": "distillchain.io/v1alpha1",
        "kind": "DistillationChain",
        "metadata": {"name": "bench"},
        "spec": {
            "task": {
                "type": "TextClassification",
                "dataset": {
                    "uri": f"file://{folder}/{data}",
                    "splits": {"train": "train.tsv", "validation": "dev.tsv"},
                    "text": ["sentence"],
                    "label": "label",
                },
                "labels": LABELS,
                "maxLength": 128,
            },
            "storage": {"uri": f"file://{folder}/store"},
            "teacher": teacher,
            "template": {"training": training},
            "stages": [stage],
        },
    }


def run_stage(run: StageRun, sizes: Sizes, folder: Path) -> Iterator[dict[str, Any]]:
    """Runs a stage. Yields: its result, and the one of its teacher's logits if it has computed them."""
    work = folder / f"run-{run.part}-{run.precision}-{run.batch}"
    work.mkdir()
    with GpuMonitor() as monitor:
        seen = run_trainer(
            run.order, work, limit_s=run.limit_s, enough=lambda seen, now_s: has_enough(seen, now_s, run.measure_s)
        )
    result: dict[str, Any] = {
        "part": run.part,
        "who": "ours",
        "precision": run.precision,
        "batch": run.batch,
        "ended": seen.ended,
        **_speed(run, sizes, seen, monitor),
        **_from_manifest(folder / "store", run, sizes, seen),
        "peak_memory_gib": monitor.peak_memory_gib(),
        "first_step_s": _first_step_s(seen, run.rows),
        "wall_s": round(seen.wall_s, 2),
        "times_s": {line.text[:60]: round(line.at_s, 2) for line in reversed(seen.log)},
        "mode_line": _fields_of(seen, MODE_CHOSEN),
        "warnings": [line.whole[:300] for line in seen.log if line.level == "WARNING"],
    }
    shutil.rmtree(work, ignore_errors=True)  # a trainer that was killed leaves gigabytes there
    if seen.ended == "failed":
        result["error"] = f"exit code {seen.exit_code}: " + "\n".join(seen.tail)
    yield result
    logits = seen.logged(LOGITS_COMPUTED)
    if logits is not None:
        yield _logits(run, logits.fields)


def has_enough(seen: Observed, now_s: float, measure_s: float | None) -> bool:
    """Whether steady training was seen for `measure_s`, in three lines or more."""
    if measure_s is None:
        return False
    lines = seen.training()
    if not lines:
        return False
    if seen.logged(MODE_CHOSEN) is None and now_s - lines[0].at_s < UNDECIDED_S + measure_s:
        return False
    steady = steady_lines(seen)
    return len(steady) >= 3 and steady[-1].at_s - steady[0].at_s >= measure_s


def steady_lines(seen: Observed) -> list[ProgressLine]:
    """Lines of the training once its mode is chosen; without such a line in the log, all but the first."""
    chosen, lines = seen.logged(MODE_CHOSEN), seen.training()
    if chosen is not None:
        return [line for line in lines if line.at_s >= chosen.at_s]
    late = [line for line in lines if line.at_s - lines[0].at_s >= UNDECIDED_S]
    return late if len(late) >= 3 else lines[1:]


def steady_rate(seen: Observed, rows: int) -> float | None:
    """Examples per second between the first and the last steady line, measurements between epochs included."""
    lines = [line for line in steady_lines(seen) if line.epoch is not None]
    if len(lines) < 2 or lines[-1].at_s - lines[0].at_s < 0.5:
        return None
    first, last = lines[0], lines[-1]
    return ((last.epoch or 0.0) - (first.epoch or 0.0)) * rows / (last.at_s - first.at_s)


def _speed(run: StageRun, sizes: Sizes, seen: Observed, monitor: GpuMonitor) -> dict[str, Any]:
    rate, lines = steady_rate(seen, run.rows), steady_lines(seen)
    if rate is None:
        return {}
    since, until = (seen.started_at + line.at_s for line in (lines[0], lines[-1]))
    found: dict[str, Any] = {
        "examples_per_second": round(rate, 1),
        "step_ms": round(1000 * run.batch / rate, 3),
        "gpu_utilisation": monitor.utilisation(since, until),
    }
    if run.part == "large":
        assert run.tokens_per_row is not None
        mfu = training_mfu(sizes.large, tokens_per_row=run.tokens_per_row, rows_per_second=rate)
        first = next((line for line in seen.training() if line.step in FIRST_STEPS), None)
        found |= {"mfu": round(mfu, 4), "loss": first.loss if first else None}
    return found


def _from_manifest(store: Path, run: StageRun, sizes: Sizes, seen: Observed) -> dict[str, Any]:
    """What the committed stage says of itself; nothing if it was stopped."""
    path = store / manifest_key(run.order.digest)
    if not path.exists():
        return {}
    manifest = json.loads(path.read_bytes())
    facts = manifest["run"]
    found = {
        "whole_run_examples_per_second": facts["examplesPerSecond"],
        "steps": facts["steps"],
        "elapsed_s": facts["elapsedS"],
        "model_s": facts["modelS"],
        "overhead_s": round(facts["elapsedS"] - facts["modelS"], 2),
        "process_overhead_s": round(seen.wall_s - facts["modelS"], 2),
        "micro_batch_size": facts.get("microBatchSize"),
        "mode": facts.get("mode"),
        "final_loss": round(facts["finalLoss"], 5),
        "accuracy": manifest["student"]["metrics"]["validation"].get("accuracy"),
    }
    if run.part != "large":
        found["loss"] = loss_near(_history(manifest), sizes.reference_epochs)
    return found


def _history(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    path = Path(manifest["checkpoint"].removeprefix("file://")).parent / "results/history.jsonl"
    return [json.loads(line) for line in path.read_text().split("\n") if line]


def loss_near(points: list[dict[str, Any]], epoch: float) -> float | None:
    """The mean training loss just before the end of an epoch."""
    window = [point["loss"] for point in points if point.get("loss") is not None and _is_before(point, epoch)]
    return round(sum(window) / len(window), 5) if window else None


def _is_before(point: dict[str, Any], epoch: float) -> bool:
    return epoch - CHECKED_EPOCHS < float(point["epoch"]) <= epoch + 1e-6


def _first_step_s(seen: Observed, rows: int) -> float | None:
    """Seconds from the start of the process to the first training step.

    The first line comes some steps later, so the time of these steps is subtracted.
    """
    first = next(iter(seen.training()), None)
    if first is None or not first.examples_per_second or first.epoch is None:
        return None
    return round(first.at_s - first.epoch * rows / first.examples_per_second, 2)


def _fields_of(seen: Observed, text: str) -> dict[str, str] | None:
    line = seen.logged(text)
    return line.fields if line else None


def _logits(run: StageRun, fields: dict[str, str]) -> dict[str, Any]:
    rows, elapsed_s = int(fields["computed"]), float(fields["elapsed_s"])
    return {
        "part": "logits",
        "who": "ours",
        "precision": run.precision,
        "rows_per_second": round(rows / max(elapsed_s, 1e-9)),
        "rows": rows,
        "seconds": elapsed_s,
    }
