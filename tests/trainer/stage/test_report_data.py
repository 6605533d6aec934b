"""What a stage leaves for the report: history, the teacher's answers, a few texts, and at the end the report itself."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest

from distillchain_api.graph import build_plan
from distillchain_api.layout import RESULTS_FOLDER
from distillchain_api.resource.export import Export, OnnxExport
from distillchain_api.resource.spec import parse_chain
from distillchain_api.wire.answer import Committed
from distillchain_api.wire.manifest import Manifest
from distillchain_api.wire.records import (
    EXAMPLES,
    EXAMPLES_FILE,
    HISTORY_FILE,
    HISTORY_POINTS,
    TEACHER_PREDICTIONS_FILE,
    Example,
    HistoryPoint,
    Prediction,
)
from distillchain_api.wire.work_order import KEEP_TEXTS_ENV, WorkOrder
from distillchain_report.commits import walk_back
from distillchain_store.folder import FileStore
from distillchain_trainer.engine.training import history
from distillchain_trainer.engine.training.history import History
from distillchain_trainer.errors import GateNotMet, StopRequested, WorkOrderInvalid
from distillchain_trainer.stage import measure
from trainer.parts import SMALL_BERT, StopAfter, a_chain_document, an_order, run_here, sentences

pytestmark = pytest.mark.models


def results_of(answer: Committed) -> Path:
    """The folder with the results of an attempt."""
    return Path(answer.checkpoint.removeprefix("file://")).parent / RESULTS_FOLDER


def sources_of(page: str) -> str:
    """What a report says it was made of."""
    found = re.search(r'<meta name="sources" content="([0-9a-f]{64})">', page)
    assert found
    return found[1]


def history_of(answer: Committed) -> list[HistoryPoint]:
    return [HistoryPoint.parse(line) for line in (results_of(answer) / HISTORY_FILE).read_text().splitlines()]


def relay_orders(root: Path) -> list[WorkOrder]:
    """Of two stages; the last one is final."""

    def student(width: int) -> dict[str, object]:
        architecture = {"modelType": "bert", "config": {**SMALL_BERT, "hidden_size": width}}
        return {"architecture": architecture, "tokenizer": f"file://{root}/teacher"}

    stages = [{"name": "mini", "student": student(16)}, {"name": "tiny", "student": student(8)}]
    document = a_chain_document(root, stages=stages, training={"epochs": 4})
    return [stage.work_order for stage in build_plan(parse_chain(document)).stages]


@pytest.mark.parametrize("by", ["a Job that only exports", "another run of the chain"])
def test_the_report_shows_an_export_that_an_earlier_stage_gets_later(root: Path, by: str):
    first, last = relay_orders(root)
    for order in (first, last):
        run_here(order, root, attempt=order.stage)
    path = root / f"store/stages/{last.digest}/report.html"
    assert "model.onnx" not in path.read_text()
    with_export = first.model_copy(update={"export": Export(onnx=OnnxExport())})

    if by == "a Job that only exports":
        late = with_export.model_copy(update={"export_only": True, "last_digest": last.digest})
        run_here(late, root, attempt="late")
    else:
        run_here(with_export, root, attempt="again")
        run_here(last, root, attempt="last-again")

    page = path.read_text()
    assert "mini" in page
    assert "model.onnx" in page
    run_here(last, root, attempt="and-again")
    assert path.read_text() == page, "it is current"


def test_an_export_while_the_chain_runs_writes_no_report(root: Path):
    first, last = relay_orders(root)
    run_here(first, root, attempt="mini")
    update = {"export": Export(onnx=OnnxExport()), "export_only": True, "last_digest": last.digest}

    run_here(first.model_copy(update=update), root, attempt="late")

    assert not (root / f"store/stages/{last.digest}").exists()


def test_a_long_training_leaves_few_points_and_no_loss_is_lost_from_their_means():
    history = History([])

    for step in range(1, 12_001):
        history.trained(step, 12_000, step / 3000, float(step), 1e-4)

    points = history.points
    assert len(points) == HISTORY_POINTS
    assert [points[0].step, points[0].loss, points[-1].step] == [24, 12.5, 12_000]
    assert sum(point.loss or 0 for point in points) / len(points) == pytest.approx(6000.5)


def test_a_step_is_measured_once():
    history = History([])
    history.measured(10, 1.0, {"accuracy": 0.5, "macroF1": 0.5})
    history.measured(10, 1.0, {"accuracy": 0.6, "macroF1": 0.6})

    assert [point.validation and point.validation["accuracy"] for point in history.points] == [0.6]


def test_a_stage_keeps_its_losses_and_what_every_epoch_reached(root: Path):
    answer = run_here(an_order(root, training={"epochs": 3}), root)

    points = history_of(answer)

    losses = [point for point in points if point.loss is not None]
    measured = [point for point in points if point.validation]
    assert [point.step for point in losses] == list(range(1, 31))
    assert [(point.step, point.epoch) for point in measured] == [(10, 1.0), (20, 2.0), (30, 3.0)]
    assert measured[-1].validation == answer.student.metrics.validation
    rates = [point.learning_rate or 0.0 for point in losses]
    assert rates == sorted(rates, reverse=True)
    assert 0 <= rates[-1] < rates[0] < 0.01


def test_the_seconds_in_models_hold_every_measurement(root: Path, monkeypatch: pytest.MonkeyPatch):
    """Each measurement claims to have taken 1000 s, against which everything else is nothing."""
    real = measure.all_outputs

    def slow(*arguments: Any, **more: Any) -> Any:
        return real(*arguments, **more)[0], 1000.0

    monkeypatch.setattr(measure, "all_outputs", slow)
    order = an_order(root, training={"epochs": 3})

    run_here(order, root)

    (manifest,) = walk_back(FileStore(f"file://{root}/store"), order.digest)
    assert manifest.run.model_s // 1000 == 1 + 3, "the teacher, and the student after each epoch"


@pytest.mark.parametrize("most", [HISTORY_POINTS, 7], ids=["a point for each step", "several steps a point"])
@pytest.mark.parametrize("looks", [pytest.param(15, id="within an epoch"), pytest.param(10, id="at its end")])
def test_a_resumed_history_is_the_one_that_was_never_interrupted(
    root: Path, looks: int, most: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(history, "HISTORY_POINTS", most)
    order = an_order(root, training={"epochs": 3})
    other = order.model_copy(update={"storage": order.storage.model_copy(update={"uri": f"file://{root}/other"})})
    whole = run_here(other, root, attempt="whole")
    with pytest.raises(StopRequested):
        run_here(order, root, attempt="first", signals=StopAfter(looks))

    answer = run_here(order, root, attempt="second")

    assert history_of(answer) == history_of(whole)


def test_a_student_measured_again_after_a_missed_gate_keeps_its_history(root: Path):
    with pytest.raises(GateNotMet):
        run_here(an_order(root, gate={"maxDrop": 0.0, "minMetric": 1.0}, training={"learningRate": 1e-6}), root)

    answer = run_here(an_order(root, training={"learningRate": 1e-6}), root, attempt="again")

    assert [point.step for point in history_of(answer) if point.validation] == [10, 20]
    assert len([point for point in history_of(answer) if point.loss is not None]) == 20


def test_the_teachers_answers_and_the_texts_of_a_few_rows_are_kept(root: Path):
    answer = run_here(an_order(root), root)

    content = (results_of(answer) / TEACHER_PREDICTIONS_FILE).read_text()
    predictions = [Prediction.parse(line) for line in content.splitlines()]
    right = sum(line.label == line.predicted for line in predictions) / len(predictions)
    assert answer.teacher is not None
    assert right == pytest.approx(answer.teacher.metrics.validation["accuracy"])
    examples = [Example.parse(line) for line in (results_of(answer) / EXAMPLES_FILE).read_text().splitlines()]
    assert len(examples) == EXAMPLES
    texts = [text for text, _ in sentences(60, 2)]
    assert all(example.text == [texts[example.row]] for example in examples)


def test_texts_stay_out_of_the_store_when_the_setting_says_so(root: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(KEEP_TEXTS_ENV, "0")

    answer = run_here(an_order(root), root)

    assert not (results_of(answer) / EXAMPLES_FILE).exists()
    page = next(root.glob("store/stages/*/report.html")).read_text()
    assert "(its text was not kept)" in page
    assert not [text for text, _ in sentences(60, 2) if text in page]


def test_a_misspelt_setting_about_texts_is_refused_before_training(root: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(KEEP_TEXTS_ENV, "no")

    with pytest.raises(WorkOrderInvalid, match=r"DISTILLCHAIN_KEEP_TEXTS: got 'no', expected 0 or 1; with 0 no"):
        run_here(an_order(root), root)

    assert not list((root / "store").iterdir())


def test_the_last_stage_alone_writes_the_report_and_it_shows_the_whole_chain(root: Path):
    mini, tiny = relay_orders(root)
    run_here(mini, root, attempt="m")
    assert not list(root.glob("store/**/report.html"))

    run_here(tiny, root, attempt="t")

    page = (root / "store" / "stages" / tiny.digest / "report.html").read_text()
    assert "Training of mini" in page
    assert "Training of tiny" in page
    assert "Where teacher and tiny differ most" in page
    assert "What this report lacks" not in page
    texts = [text for text, _ in sentences(60, 2)]
    assert sum(f"<div>{text}</div>" in page for text in texts) == EXAMPLES, "rows where the root teacher differs"


def test_a_committed_last_stage_without_a_report_gets_one_and_one_of_the_same_manifests_stays(root: Path):
    order = an_order(root)
    run_here(order, root)
    report = root / "store" / "stages" / order.digest / "report.html"
    report.unlink()

    run_here(order, root, attempt="second")

    assert "<title>default/small: distillation report</title>" in report.read_text()
    report.write_text(report.read_text() + "<!-- a user's note -->")
    run_here(order, root, attempt="third")
    assert report.read_text().endswith("<!-- a user's note -->")


def test_a_last_stage_that_is_trained_again_gets_a_new_report(root: Path):
    order = an_order(root)
    run_here(order, root)
    stage = root / "store" / "stages" / order.digest
    (stage / "report.html").write_text("of the first training")
    (stage / "manifest.json").unlink()

    answer = run_here(order, root, attempt="second")

    assert not answer.reused
    assert "<title>default/small: distillation report</title>" in (stage / "report.html").read_text()


def test_a_stage_before_that_is_trained_again_changes_the_report_when_the_last_one_is_verified(root: Path):
    mini, tiny = relay_orders(root)
    run_here(mini, root, attempt="m")
    run_here(tiny, root, attempt="t")
    report = root / "store" / "stages" / tiny.digest / "report.html"
    before = report.read_text()
    (root / "store" / "stages" / mini.digest / "manifest.json").unlink()
    run_here(mini, root, attempt="anew")

    answer = run_here(tiny, root, attempt="again")

    assert answer.reused
    assert sources_of(report.read_text()) != sources_of(before)


def test_a_report_that_cannot_be_made_fails_no_stage(root: Path, caplog: pytest.LogCaptureFixture):
    mini, tiny = relay_orders(root)
    run_here(mini, root, attempt="m")
    run_here(tiny, root, attempt="t")
    (root / "store" / "stages" / tiny.digest / "report.html").unlink()
    (root / "store" / "stages" / mini.digest / "manifest.json").write_text("{")

    with caplog.at_level(logging.WARNING):
        answer = run_here(tiny, root, attempt="again")

    assert answer.reused
    assert "the chain's report could not be written; see `distillchain report`" in caplog.text


def test_a_stage_of_before_these_files_is_built_upon(root: Path):
    """Its manifest lists none of them; the next stage then chooses its rows by its own teacher."""
    mini, tiny = relay_orders(root)
    run_here(mini, root, attempt="m")
    path = root / "store" / "stages" / mini.digest / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"] = [entry for entry in manifest["files"] if not entry["path"].endswith(".jsonl")]
    path.write_text(json.dumps(manifest))

    run_here(tiny, root, attempt="t")

    page = (root / "store" / "stages" / tiny.digest / "report.html").read_text()
    assert re.search(r"mini: no curves: \S+/history\.jsonl was not kept when this stage was committed", page)
    chain = walk_back(FileStore(f"file://{root}/store"), tiny.digest)
    assert [type(found) for found in chain] == [Manifest, Manifest]
