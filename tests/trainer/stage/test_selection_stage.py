"""A stage that commits its best epoch, in one process and in several, also after an interruption."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from distillchain_api.resource.gate import Gate
from distillchain_api.wire.answer import parse_progress
from distillchain_api.wire.manifest import Manifest
from distillchain_api.wire.records import HistoryPoint
from distillchain_api.wire.work_order import WorkOrder
from distillchain_trainer.errors import GateNotMet, StopRequested
from distillchain_trainer.signals import Signals
from distillchain_trainer.stage.progress import Reporter
from distillchain_trainer.stage.run import run_stage
from trainer.parts import (
    StopAfter,
    an_order,
    manifest_of,
    new_student,
    run_here,
    save_bert,
    sentences,
    weights_of,
    write_tsv,
)
from trainer.rank_parts import Attempt, start_stage

pytestmark = pytest.mark.models

EPOCHS = 12
BEST = {"epochs": EPOCHS, "selection": "Best", "patience": 2, "learningRate": 0.003}


def an_order_in(root: Path, store: str = "store", *, dropout: float = 0.2, **parts: Any) -> WorkOrder:
    student = new_student(root, dropout=dropout, hidden_size=8, num_hidden_layers=2)
    return an_order(root, student=student, storage={"uri": f"file://{root}/{store}"}, training=BEST, **parts)


def read_manifest_in(root: Path, digest: str, store: str) -> Manifest:
    return Manifest.parse((root / f"{store}/stages/{digest}/manifest.json").read_text())


def history_of(root: Path, digest: str, store: str = "store") -> list[HistoryPoint]:
    (path,) = root.glob(f"{store}/stages/{digest}/attempts/*/results/history.jsonl")
    return [HistoryPoint.parse(line) for line in path.read_text().splitlines()]


def test_the_best_epoch_is_committed_and_the_training_ends_early(root: Path):
    order, lines = an_order_in(root), io.StringIO()
    (root / "work").mkdir()

    answer = run_stage(order, attempt="a", folder=root / "work", reporter=Reporter("small", lines), signals=Signals())

    manifest = manifest_of(root, order.digest)
    selected = manifest.run.selected
    measured = {point.epoch: point.validation for point in history_of(root, order.digest) if point.validation}
    assert selected is not None
    assert selected.trained_epochs == len(measured) == selected.epoch + 2 < EPOCHS
    values = [metrics["accuracy"] for metrics in measured.values()]
    assert values.index(max(values)) == selected.epoch - 1
    assert measured[selected.epoch] == answer.student.metrics.validation, "what is committed is that epoch"
    assert manifest.run.steps == 10 * selected.trained_epochs
    steps = [line for line in map(parse_progress, lines.getvalue().splitlines()) if line and line.phase == "Train"]
    assert steps[-1].step == steps[-1].of == manifest.run.steps


def test_a_finished_training_that_was_not_committed_is_not_trained_again(root: Path):
    order = an_order_in(root)
    gated = order.model_copy(update={"gate": Gate(min_metric=1.0, max_drop=0.0)})

    with pytest.raises(GateNotMet):
        run_here(gated, root, attempt="first")
    (index,) = root.glob(f"store/stages/{order.digest}/resume/*/index.json")
    steps = json.loads(index.read_text())["step"]
    answer = run_here(order, root, attempt="second")

    run = manifest_of(root, order.digest).run
    assert run.selected is not None
    assert (run.resumed, run.steps) == (True, steps)
    measured = [point.validation for point in history_of(root, order.digest) if point.validation]
    assert answer.student.metrics.validation == measured[run.selected.epoch - 1]


@pytest.mark.parametrize("sharding", [None, "Full"])
def test_ranks_end_at_the_same_step_and_a_stop_changes_no_bit(root: Path, sharding: str | None):
    template = {"parallelism": {"processesPerNode": 2, "sharding": sharding}} if sharding else {}
    whole = start_stage(Attempt(an_order_in(root, "whole", template=template), "whole"), root, 2).answers()
    order = an_order_in(root, template=template)

    stopped = start_stage(Attempt(order, "stopped", stop_after=(1, 30)), root, 2).wait()
    resumed = start_stage(Attempt(order, "resumed"), root, 2).answers()

    assert [outcome["error"] for outcome in stopped] == ["StopRequested"] * 2
    assert 10 < stopped[0]["step"] == stopped[1]["step"]
    assert weights_of(resumed[0]) == weights_of(whole[0])
    runs = [read_manifest_in(root, order.digest, store).run for store in ("whole", "store")]
    assert runs[0].selected == runs[1].selected is not None
    assert runs[1].resumed
    assert runs[1].selected.trained_epochs < EPOCHS


def test_states_are_of_one_validation_split(root: Path):
    """Values of other rows cannot be compared with those of the epochs before."""
    order = an_order_in(root)
    with pytest.raises(StopRequested):
        run_here(order, root, attempt="first", signals=StopAfter(25))
    write_tsv(root / "data/dev.tsv", sentences(60, 77))

    run_here(order, root, attempt="second")

    assert not manifest_of(root, order.digest).run.resumed


def test_stage_zero_chooses_its_best_epoch_too(root: Path):
    save_bert(root / "encoder", labels=None, seed=5)
    teacher = {"model": f"file://{root}/encoder", "fineTune": {**BEST, "patience": 1}}
    order = an_order(root, teacher=teacher)

    run_here(order, root)

    selected = manifest_of(root, order.digest).run.selected
    assert selected is not None
    assert selected.trained_epochs < EPOCHS
