"""From the store to the report: what is read, what is recorded as missing, and what is not compared."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Literal

import pytest

from distillchain_api.failures import FailureClass
from distillchain_api.wire.records import HISTORY_FILE, PREDICTIONS_FILE, HistoryPoint
from distillchain_report.build import build_report
from distillchain_report.commits import sources_digest, walk_back
from distillchain_report.load import WantedStage, load_stages
from distillchain_report.render import render_html, render_markdown
from distillchain_store.errors import CheckpointCorrupt
from distillchain_store.folder import FileStore
from report.html import Page
from report.stores import (
    FAILED,
    MOMENT,
    PENDING,
    Relay,
    a_report,
    digest_of,
    report_of,
    rewrite_manifest,
    wanted_of,
    write_relay,
)

pytestmark = pytest.mark.slow


def test_stages_without_predictions_still_make_a_report_that_lists_what_it_lacks(tmp_path: Path):
    report = a_report(tmp_path, files=[])

    attempt = f"file://{tmp_path}/stages/{digest_of('mini')}/attempts/a1"
    assert report.missing[:3] == [
        f"mini: no curves: {attempt}/results/history.jsonl was not kept when this stage was committed",
        f"mini: no interval of its macro F1 and no comparison: {attempt}/results/predictions-validation.jsonl was not kept when "
        "this stage was committed",
        f"mini: no paired test against the root teacher: {attempt}/results/teacher-predictions-validation.jsonl was not kept when "
        "this stage was committed",
    ]  # fmt: skip
    assert report.root is not None
    assert report.root.metrics["accuracy"].low is not None, "Wilson's interval needs only the number of rows"
    assert (report.details, report.against_root) == (None, None)
    assert report.missing[0] in Page(render_html(report)).words


@pytest.mark.parametrize(
    "damage, want",
    [
        pytest.param(lambda path: path.write_text("{}\n"), "has 3 bytes, its manifest lists", id="altered"),
        pytest.param(lambda path: path.unlink(), "is missing", id="gone"),
    ],
)
def test_a_damaged_file_is_named_and_not_used(tmp_path: Path, damage: object, want: str):
    relay = Relay()
    write_relay(tmp_path, relay)
    assert callable(damage)
    path = tmp_path / "stages" / digest_of("tiny") / "attempts" / "a1/results" / HISTORY_FILE
    damage(path)

    report = report_of(tmp_path, relay)

    (sentence,) = report.missing
    assert sentence.startswith(f"tiny: no curves: file://{path} {want}")
    assert report.stages[1].history == []
    assert report.stages[2].history


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\u0085"])
def test_only_a_line_feed_ends_a_line(tmp_path: Path, mark: str):
    text = f"a film{mark}of quiet charm"

    report = a_report(tmp_path, text=text, labels=[f"negative{mark}", "positive"])

    assert report.missing == []
    assert {found.text and found.text[0] for found in report.details.differences} == {text}  # type: ignore[union-attr]  # of the section


def test_a_damaged_manifest_is_named_and_the_rest_reported(tmp_path: Path):
    relay = Relay()
    write_relay(tmp_path, relay)
    (tmp_path / "stages" / digest_of("femto") / "manifest.json").write_text("{")

    report = report_of(tmp_path, relay)

    assert report.outcome == "Unfinished"
    assert report.last is not None
    assert report.last.name == "tiny"
    assert "femto" in report.missing[0]
    assert "manifest.json cannot be read" in report.missing[0]


@pytest.mark.parametrize("fine_tuned", [True, False])
@pytest.mark.parametrize("damaged", [["mini"], ["teacher"], ["teacher", "mini"], ["tiny", "femto"]])
def test_a_report_without_some_manifests_can_be_drawn(tmp_path: Path, damaged: list[str], fine_tuned: bool):
    relay = Relay(fine_tuned=fine_tuned)
    write_relay(tmp_path, relay)
    for name in damaged:
        manifest = tmp_path / "stages" / digest_of(name) / "manifest.json"
        if manifest.exists():
            manifest.write_text("junk")

    report = report_of(tmp_path, relay)

    assert report.outcome in Page(render_html(report)).words
    assert report.outcome in render_markdown(report)


def test_fields_that_a_newer_release_has_added_are_ignored(tmp_path: Path):
    relay = Relay()
    write_relay(tmp_path, relay)
    before = report_of(tmp_path, relay)
    manifest = json.loads((tmp_path / "stages" / digest_of("femto") / "manifest.json").read_text())
    run, student = manifest["run"] | {"newFact": 1}, manifest["student"] | {"newFact": {"a": [1]}}

    rewrite_manifest(tmp_path, "femto", run=run, student=student, newFact="x")

    assert report_of(tmp_path, relay) == before
    assert HistoryPoint.parse('{"step":1,"epoch":0.5,"newFact":1}') == HistoryPoint(step=1, epoch=0.5)


@pytest.mark.parametrize(
    "phase, want",
    [(None, "Not finished: 2 of 3 stages committed; femto: "), ("Committed", "Failed at femto (no class) with 2 of 3")],
)
def test_a_manifest_of_another_contract_is_reported_as_one_of_another_release(
    tmp_path: Path, phase: Literal["Committed"] | None, want: str
):
    write_relay(tmp_path, Relay())
    rewrite_manifest(tmp_path, "femto", contract=3, student="in another form")
    relay = Relay(names=["mini", "tiny"], waiting=[WantedStage("femto", digest_of("femto"), phase=phase)])

    report = report_of(tmp_path, relay)

    why = f"file://{tmp_path}/stages/{digest_of('femto')}/manifest.json was made by another release"
    assert report.missing[0].startswith(f"femto: {why}")
    assert report.verdict.startswith(want)
    assert why in report.verdict


def test_models_on_other_validation_rows_are_never_compared(tmp_path: Path):
    relay = Relay()
    write_relay(tmp_path / "one", relay)
    write_relay(tmp_path / "other", Relay(rows=500))
    shutil.rmtree(tmp_path / "one" / "stages" / digest_of("femto"))
    shutil.copytree(
        tmp_path / "other" / "stages" / digest_of("femto"), tmp_path / "one" / "stages" / digest_of("femto")
    )

    report = report_of(tmp_path / "one", relay)

    assert report.against_root is None
    assert report.details.differences == []  # type: ignore[union-attr]  # of the section
    assert report.stages[1].against_teacher is not None


def test_models_are_not_compared_after_texts_were_replaced_in_place(tmp_path: Path):
    """The labels are the same, and so is their number."""
    relay = Relay()
    write_relay(tmp_path, relay)
    manifest = json.loads((tmp_path / "stages" / digest_of("femto") / "manifest.json").read_text())
    replaced = manifest["data"]["validation"] | {"sha256": digest_of("other rows")}
    rewrite_manifest(tmp_path, "femto", data=manifest["data"] | {"validation": replaced})

    report = report_of(tmp_path, relay)

    assert report.missing == ["femto: measured on other validation rows than the root teacher; not compared"]
    assert report.against_root is None
    assert report.verdict == (
        "femto cannot be compared with the teacher: accuracy 0.830 (95 % interval 0.804–0.854) with 4.5 M parameters."
    )
    kept = [stage.model.retention for stage in report.stages if stage.model]
    assert [each is None for each in kept] == [False, False, True]
    assert report.stages[2].against_teacher is not None, "its own teacher was measured on the same rows"
    assert report.missing[0] in Page(render_html(report)).words


def test_a_teacher_that_was_trained_again_is_not_the_one_that_taught(tmp_path: Path):
    relay = Relay(files=[HISTORY_FILE, PREDICTIONS_FILE])
    write_relay(tmp_path, relay)
    manifest = json.loads((tmp_path / "stages" / digest_of("mini") / "manifest.json").read_text())
    rewrite_manifest(tmp_path, "mini", student=manifest["student"] | {"revision": "sha256:" + "a" * 64})

    report = report_of(tmp_path, relay)

    own = digest_of("weights 1")[:12]
    want = f"tiny: its teacher was mini with other weights (sha256:{own}) than are committed now (sha256:{'a' * 12})"
    assert want in report.missing
    assert report.stages[1].against_teacher is None
    assert report.stages[2].against_teacher is not None


def test_without_its_teachers_predictions_a_stage_is_compared_with_those_of_the_stage_before(tmp_path: Path):
    whole = a_report(tmp_path / "whole")
    partial = a_report(tmp_path / "partial", files=[HISTORY_FILE, PREDICTIONS_FILE])

    assert partial.stages[0].against_teacher is None, "no stage has the root teacher's predictions"
    assert partial.stages[2].against_teacher == whole.stages[2].against_teacher is not None


def test_stages_of_another_chain_count_as_reused(tmp_path: Path):
    relay = Relay()
    write_relay(tmp_path, relay)
    rewrite_manifest(tmp_path, "mini", chain="ml/another")

    report = report_of(tmp_path, relay)

    assert [stage.run.reused for stage in report.stages if stage.run] == [True, False, False]
    assert report.totals.reused_share == pytest.approx(2100 / (2100 + 1400 + 1050))
    assert report.totals.gpu_hours == pytest.approx((2100 + 1400 + 1050) / 3600)
    assert "reused, trained by ml/another; resumed" in Page(render_html(report)).words


def test_each_process_of_a_stage_takes_gpu_hours(tmp_path: Path):
    relay = Relay()
    write_relay(tmp_path, relay)
    path = tmp_path / "stages" / digest_of("mini") / "manifest.json"
    run = json.loads(path.read_text())["run"]
    rewrite_manifest(tmp_path, "mini", run=run | {"processes": 8})

    assert report_of(tmp_path, relay).totals.gpu_hours == pytest.approx((8 * 2100 + 1400 + 1050) / 3600)


def test_a_stage_on_a_cpu_takes_no_gpu_hours(tmp_path: Path):
    assert a_report(tmp_path, device="cpu (2 threads)").totals.gpu_hours == 0


def test_the_latest_saved_state_of_a_running_stage_is_reported(tmp_path: Path):
    relay = Relay(names=["mini"], accuracies=[0.93, 0.9], waiting=[PENDING])
    write_relay(tmp_path, relay)
    for source, step in (("0a", 300), ("0b", 800), ("f0", 100)):
        state = tmp_path / "stages" / PENDING.digest / "resume" / f"{source}-{step:09d}-a1-abc"
        state.mkdir(parents=True)
        (state / "index.json").write_text(json.dumps({"step": step, "of": 900, "elapsedS": 1}))
    (state / "broken").mkdir()
    (state / "broken" / "index.json").write_text("{")

    report = report_of(tmp_path, relay)

    assert report.stages[1].message == "a state at step 800 of 900 is saved"


def test_a_commit_that_the_status_knows_and_the_store_lacks_is_a_failure(tmp_path: Path):
    relay = Relay(names=["mini"], accuracies=[0.93, 0.9], waiting=[WantedStage("femto", "f" * 64, phase="Committed")])
    write_relay(tmp_path, relay)

    report = report_of(tmp_path, relay)

    assert report.outcome == "Failed"
    assert report.stages[1].message == "its commit is no longer in the store"


def test_a_committed_stage_that_failed_is_shown_with_its_numbers(tmp_path: Path):
    """Its gate was raised, or its commit is damaged."""
    write_relay(tmp_path, Relay())
    relay = Relay(names=["mini", "tiny"], waiting=[FAILED])

    report = report_of(tmp_path, relay)

    assert report.outcome == "Failed"
    assert report.verdict.startswith(
        "Failed at femto (GateNotMet) with 3 of 3 stages committed: student femto: accuracy 0.61 is below "
        "spec.stages[2].gate.minMetric 0.79. femto keeps 89.3 % (95 % interval"
    )
    assert "Failed: GateNotMet" in Page(render_html(report)).words
    assert "| femto | new weights; Failed: GateNotMet | 4.5 M |" in render_markdown(report)


def test_a_committed_fine_tuning_that_failed_is_shown_at_the_teacher(tmp_path: Path):
    write_relay(tmp_path, Relay(fine_tuned=True))
    corrupt = WantedStage(
        "teacher",
        digest_of("teacher"),
        phase="Failed",
        message="its weights were altered",
        failure_class=FailureClass.CHECKPOINT_CORRUPT,
    )
    store = FileStore(f"file://{tmp_path}")
    stages = load_stages(store, [corrupt, *wanted_of(Relay())])

    report = build_report("ml/x", stages, storage=store.uri, generated_at=MOMENT, version="0.1.0")

    assert report.verdict.startswith("Failed at teacher (CheckpointCorrupt) with 4 of 4 stages committed: its weights")
    assert "Failed: CheckpointCorrupt" in Page(render_html(report)).words
    assert "| teacher | Failed: CheckpointCorrupt | 335 M |" in render_markdown(report)


@pytest.mark.parametrize("metric", ["accuracy", "macroF1"])
def test_every_metric_has_its_interval(tmp_path: Path, metric: str):
    report = a_report(tmp_path, metric=metric, labels=["low", "middle", "high"])

    shown = [each for found in report.details.classes for each in (found.recall, found.precision, found.f1)]  # type: ignore[union-attr]  # of the section
    for stage in report.stages:
        assert stage.model is not None
        model = stage.model
        shown += [model.metric, *model.metrics.values(), model.test, model.retention]
    assert len(shown) == 3 * 3 + 5 * 3
    for estimate in shown:
        assert estimate is not None
        assert estimate.low is not None
        assert estimate.high is not None
        assert estimate.low <= estimate.value <= estimate.high


@pytest.mark.parametrize("name, metric", [("tiny", "0.890"), ("teacher", "0.930")])
def test_exports_are_listed_in_every_form_of_the_report(tmp_path: Path, name: str, metric: str):
    report = a_report(tmp_path / "one", fine_tuned=True, exported=[name])

    (stage,) = (stage for stage in report.stages if stage.exports)
    assert stage.name == name
    assert [export.format for export in stage.exports] == ["pytorch", "onnx", "onnx-int8"]
    folder = f"file://{tmp_path}/one/stages/{digest_of(name)}/exports/e1"
    assert stage.exports[2].uri == f"{folder}/model.int8.onnx"
    assert stage.exports[0].uri.endswith("/attempts/a1/checkpoint")
    text = render_markdown(report)
    assert "## Exports" in text
    row = next(line for line in text.splitlines() if line.startswith(f"| {name} | onnx-int8 |"))
    assert f"| {metric} | 2,700 | 3 | 2e-06 |" in row
    page = Page(render_html(report))
    assert "exports" in page.ids
    assert any("model.int8.onnx" in word for word in page.words)


@pytest.mark.parametrize(
    "content, missing",
    [
        pytest.param("{", 1, id="unreadable"),
        pytest.param(None, 0, id="of weights that were replaced"),
    ],
)
def test_an_export_that_cannot_be_used_is_left_out(tmp_path: Path, content: str | None, missing: int):
    relay = Relay(exported=["tiny"])
    write_relay(tmp_path, relay)
    path = tmp_path / f"stages/{digest_of('tiny')}/exports/onnx-int8.json"
    path.write_text(content or path.read_text().replace('"weights":"sha256:', '"weights":"sha256:0'))

    report = report_of(tmp_path, relay)

    assert not report.stages[1].exports
    assert len(report.missing) == missing
    assert "exports" not in Page(render_html(report)).ids


def test_a_store_of_an_older_release_with_one_folder_an_attempt_gives_the_same_report(tmp_path: Path):
    now, before = (a_report(tmp_path / name, one_folder=name == "before") for name in ("now", "before"))

    assert before.missing == []
    assert before.stages[0].run is not None
    assert before.stages[0].run.checkpoint.endswith("/attempts/a1")
    assert [stage.history for stage in before.stages] == [stage.history for stage in now.stages]
    assert before.against_root == now.against_root is not None


def test_a_store_that_was_moved_is_reported_at_its_new_place(tmp_path: Path):
    write_relay(tmp_path / "there", Relay())
    before = report_of(tmp_path / "there", Relay()).sources
    (tmp_path / "there").rename(tmp_path / "here")

    report = report_of(tmp_path / "here", Relay())

    assert [stage.run.checkpoint for stage in report.stages if stage.run] == [
        f"file://{tmp_path}/here/stages/{digest_of(stage.name)}/attempts/a1/checkpoint" for stage in report.stages
    ]
    stored = walk_back(FileStore(f"file://{tmp_path}/here"), digest_of("femto"))
    assert report.sources == sources_digest(stored, []) == before, "the trainer sees that the stored page is current"


def test_walking_back_finds_the_chain_from_the_digest_of_its_last_stage(tmp_path: Path):
    store = write_relay(tmp_path, Relay(fine_tuned=True))

    assert [manifest.stage for manifest in walk_back(store, digest_of("femto"))] == ["teacher", "mini", "tiny", "femto"]
    (tmp_path / "stages" / digest_of("mini") / "manifest.json").unlink()
    with pytest.raises(CheckpointCorrupt, match=r"manifest\.json is missing"):
        walk_back(store, digest_of("femto"))


def test_walking_back_ends_in_a_chain_that_names_itself_as_its_teacher(tmp_path: Path):
    store = write_relay(tmp_path, Relay())
    manifest = json.loads((tmp_path / "stages" / digest_of("mini") / "manifest.json").read_text())
    rewrite_manifest(tmp_path, "mini", teacher=manifest["teacher"] | {"digest": digest_of("femto")})

    with pytest.raises(CheckpointCorrupt, match="teacher's teacher"):
        walk_back(store, digest_of("femto"))
