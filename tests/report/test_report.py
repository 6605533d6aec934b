"""The report from the store to its pages: what it says, what it says is missing, and what never becomes markup."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Literal

import pytest

from distillchain_api.failures import FailureClass
from distillchain_api.wire.records import HISTORY_FILE, PREDICTIONS_FILE, TEACHER_PREDICTIONS_FILE, HistoryPoint
from distillchain_report.build import build_report
from distillchain_report.load import Unreadable, WantedStage, load_stages, manifests_digest, read_manifest, walk_back
from distillchain_report.model import Report
from distillchain_report.render import Format, render, render_html, render_markdown
from distillchain_store.folder import FileStore
from report.stores import (
    MARKUP,
    MOMENT,
    Relay,
    a_report,
    digest_of,
    report_of,
    rewrite_manifest,
    wanted_of,
    write_relay,
)

pytestmark = pytest.mark.slow

FAILED = WantedStage(
    "femto",
    digest_of("femto"),
    phase="Failed",
    message="student femto: accuracy 0.61 is under spec.stages[2].gate.minMetric 0.79",
    failure_class=FailureClass.GATE_NOT_MET,
)
PENDING = WantedStage("femto", digest_of("femto"))


class Page(HTMLParser):
    """Elements, ids and visible words of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def ids(self) -> list[str]:
        return [found for _, attributes in self.elements if (found := attributes.get("id"))]


@pytest.mark.parametrize(
    "parts, want",
    [
        pytest.param(
            {},
            "femto keeps 89.3 % (95 % interval 87.1–91.3 %) of the teacher’s accuracy (0.830 of 0.930) with 1/74 of its "
            "parameters (4.5 M of 335 M). The loss is more than chance explains (McNemar’s exact test, p < 0.001).",
            id="succeeded, with a loss",
        ),
        pytest.param(
            {"names": ["femto"], "accuracies": [0.93, 0.93]},
            "femto reaches 100.0 % (95 % interval 98.4–101.6 %) of the teacher’s accuracy (0.930 of 0.930) with 24 % of its "
            "parameters (79.8 M of 335 M). The difference is within what chance explains (McNemar’s exact test, p = 1.000).",
            id="as good as its teacher",
        ),
        pytest.param(
            {"names": ["mini", "tiny"], "accuracies": [0.93, 0.92, 0.89], "waiting": [FAILED]},
            "Failed at femto (GateNotMet) with 2 of 3 stages committed: student femto: accuracy 0.61 is under "
            "spec.stages[2].gate.minMetric 0.79. tiny so far keeps",
            id="failed",
        ),
        pytest.param(
            {"names": ["mini", "tiny"], "accuracies": [0.93, 0.92, 0.89], "waiting": [PENDING]},
            "Not finished: 2 of 3 stages committed; femto: not begun, or nothing saved yet. tiny so far keeps 95.7 %",
            id="half done",
        ),
        pytest.param(
            {"names": [], "accuracies": [0.93], "waiting": [PENDING]},
            "Not finished: 0 of 1 stages committed; femto: not begun, or nothing saved yet.",
            id="nothing committed",
        ),
        pytest.param(
            {"accuracies": [0.93, 0.92, 0.89, 0.5]},
            "femto has not learned the task: its accuracy of 0.500 is no better than always answering the most frequent "
            "class (0.522).",
            id="at chance",
        ),
        pytest.param(
            {"fine_tuned": True},
            "femto keeps 89.3 % (95 % interval 87.1–91.3 %) of the teacher’s accuracy (0.830 of 0.930)",
            id="a fine-tuned teacher",
        ),
        pytest.param(
            {"names": [], "accuracies": [0.93], "fine_tuned": True, "waiting": [PENDING]},
            "Not finished: 1 of 2 stages committed; femto: not begun, or nothing saved yet. teacher is fine-tuned: "
            "accuracy 0.930 (95 % interval 0.911–0.945) with 335 M parameters.",
            id="only the teacher fine-tuned",
        ),
        pytest.param(
            {"files": [PREDICTIONS_FILE]},
            "femto keeps 89.3 % of the teacher’s accuracy (0.830 of 0.930) with 1/74 of its parameters (4.5 M of 335 M). "
            "Whether the difference is more than chance cannot be said from what the store holds.",
            id="of before the teacher's predictions were kept",
        ),
    ],
)  # fmt: skip
def test_the_verdict_is_one_sentence_of_what_came_out(tmp_path: Path, parts: dict[str, object], want: str):
    report = a_report(tmp_path, **parts)

    assert report.verdict.startswith(want)


def test_a_student_above_chance_on_few_rows_keeps_its_numbers_and_the_doubt_is_said(tmp_path: Path):
    report = a_report(tmp_path, rows=40, accuracies=[0.93, 0.92, 0.89, 0.65])

    assert report.verdict.startswith("femto keeps ")
    assert "too few to tell it from always answering the most frequent class (0." in report.verdict
    assert "McNemar" in report.verdict


def test_the_doubt_is_said_also_where_nothing_is_kept_of_a_teacher(tmp_path: Path):
    report = a_report(tmp_path, fine_tuned=True, names=[], rows=40, accuracies=[0.65], waiting=[PENDING])

    assert "teacher is fine-tuned: accuracy 0.650" in report.verdict
    assert "too few to tell it from always answering the most frequent class" in report.verdict


def test_a_store_of_before_these_files_still_makes_a_report_that_says_what_it_lacks(tmp_path: Path):
    report = a_report(tmp_path, files=[])

    assert report.missing[:3] == [
        "mini: history.jsonl was not kept when this stage was committed; no curves",
        "mini: predictions-validation.jsonl was not kept when this stage was committed; no interval of its macro F1 and "
        "no comparison",
        "mini: teacher-predictions-validation.jsonl was not kept when this stage was committed; no paired test against "
        "the root teacher",
    ]  # fmt: skip
    assert report.root is not None
    assert report.root.accuracy.low is not None, "Wilson's interval needs the number of rows alone"
    assert (report.confusion, report.against_root, report.differences) == (None, None, [])
    page = Page(render_html(report))
    assert report.missing[0] in page.words
    assert "The predictions were not kept." in page.words


@pytest.mark.parametrize(
    "damage, want",
    [
        pytest.param(lambda path: path.write_text("{}\n"), "was altered in the store", id="altered"),
        pytest.param(lambda path: path.unlink(), "is gone from the store", id="gone"),
    ],
)
def test_a_damaged_file_is_named_and_not_used(tmp_path: Path, damage: object, want: str):
    relay = Relay()
    write_relay(tmp_path, relay)
    assert callable(damage)
    damage(tmp_path / "stages" / digest_of("tiny") / "attempts" / "a1" / HISTORY_FILE)

    report = report_of(tmp_path, relay)

    assert report.missing == [f"tiny: history.jsonl {want}; no curves"]
    assert report.stages[1].history == []
    assert report.stages[2].history


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\u0085"])
def test_a_line_ends_with_the_line_feed_alone(tmp_path: Path, mark: str):
    text = f"a film{mark}of quiet charm"

    report = a_report(tmp_path, text=text, labels=[f"negative{mark}", "positive"])

    assert report.missing == []
    assert {found.text and found.text[0] for found in report.differences} == {text}
    assert report.confusion is not None


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


def test_what_a_newer_release_has_added_is_passed_over(tmp_path: Path):
    relay = Relay()
    store = write_relay(tmp_path, relay)
    before = report_of(tmp_path, relay)
    manifest = json.loads((tmp_path / "stages" / digest_of("femto") / "manifest.json").read_text())
    run, student = manifest["run"] | {"newFact": 1}, manifest["student"] | {"newFact": {"a": [1]}}

    rewrite_manifest(tmp_path, "femto", run=run, student=student, newFact="x")

    assert report_of(tmp_path, relay) == before
    assert HistoryPoint.parse('{"step":1,"epoch":0.5,"newFact":1}') == HistoryPoint(step=1, epoch=0.5)
    assert read_manifest(store, digest_of("femto")) is not None


@pytest.mark.parametrize(
    "phase, want",
    [(None, "Not finished: 2 of 3 stages committed; femto: "), ("Committed", "Failed at femto (no class) with 2 of 3")],
)
def test_a_manifest_of_another_contract_is_told_to_be_of_another_release(
    tmp_path: Path, phase: Literal["Committed"] | None, want: str
):
    write_relay(tmp_path, Relay())
    rewrite_manifest(tmp_path, "femto", contract=2, student="in another form")
    relay = Relay(names=["mini", "tiny"], waiting=[WantedStage("femto", digest_of("femto"), phase=phase)])

    report = report_of(tmp_path, relay)

    place = f"file://{tmp_path}/stages/{digest_of('femto')}/manifest.json"
    told = (
        f"{place} was made by another release (its contract is 2, this release reads 1); make the report with that "
        "release"
    )
    assert report.missing == [f"femto: {told}"]
    assert report.verdict.startswith(want)
    assert told in report.verdict


def test_other_validation_rows_are_never_compared(tmp_path: Path):
    relay = Relay()
    write_relay(tmp_path / "one", relay)
    write_relay(tmp_path / "other", Relay(rows=500))
    shutil.rmtree(tmp_path / "one" / "stages" / digest_of("femto"))
    shutil.copytree(
        tmp_path / "other" / "stages" / digest_of("femto"), tmp_path / "one" / "stages" / digest_of("femto")
    )

    report = report_of(tmp_path / "one", relay)

    assert report.against_root is None
    assert report.differences == []
    assert report.stages[1].against_teacher is not None


def test_texts_that_were_replaced_in_place_are_never_compared(tmp_path: Path):
    """The labels are the same, and so is their number."""
    relay = Relay()
    write_relay(tmp_path, relay)
    manifest = json.loads((tmp_path / "stages" / digest_of("femto") / "manifest.json").read_text())
    replaced = manifest["data"]["validation"] | {"sha256": digest_of("other rows")}
    rewrite_manifest(tmp_path, "femto", data=manifest["data"] | {"validation": replaced})

    report = report_of(tmp_path, relay)

    assert report.missing == ["femto: it was measured on other validation rows than the root teacher; not compared"]
    assert (report.against_root, report.differences) == (None, [])
    assert report.verdict == (
        "femto cannot be held against the teacher: accuracy 0.830 (95 % interval 0.804–0.854) with 4.5 M parameters."
    )
    kept = [stage.model.retention for stage in report.stages if stage.model]
    assert [each is None for each in kept] == [False, False, True]
    assert report.stages[2].against_teacher is not None, "with its own teacher, measured beside it"
    assert report.missing[0] in Page(render_html(report)).words


def test_a_teacher_that_was_trained_anew_is_not_the_one_that_taught(tmp_path: Path):
    relay = Relay(files=[HISTORY_FILE, PREDICTIONS_FILE])
    write_relay(tmp_path, relay)
    manifest = json.loads((tmp_path / "stages" / digest_of("mini") / "manifest.json").read_text())
    rewrite_manifest(tmp_path, "mini", student=manifest["student"] | {"revision": "sha256:" + "a" * 64})

    report = report_of(tmp_path, relay)

    taught_by = digest_of("weights 1")[:12]
    want = f"tiny: other weights of mini have taught it (sha256:{taught_by}) than are committed now (sha256:{'a' * 12})"
    assert want in report.missing
    assert report.stages[1].against_teacher is None
    assert report.stages[2].against_teacher is not None


def test_without_its_own_copy_a_stage_is_compared_with_the_stage_before(tmp_path: Path):
    whole = a_report(tmp_path / "whole")
    older = a_report(tmp_path / "older", files=[HISTORY_FILE, PREDICTIONS_FILE])

    assert older.stages[0].against_teacher is None, "nobody kept the root teacher's answers"
    assert older.stages[2].against_teacher == whole.stages[2].against_teacher is not None


def test_stages_of_another_chain_count_as_reused_and_the_status_knows_better(tmp_path: Path):
    relay = Relay()
    write_relay(tmp_path, relay)
    rewrite_manifest(tmp_path, "mini", chain="ml/another")

    report = report_of(tmp_path, relay)

    assert [stage.run.reused for stage in report.stages if stage.run] == [True, False, False]
    assert report.totals.reused_share == pytest.approx(2100 / (2100 + 1400 + 1050))
    assert report.totals.gpu_hours == pytest.approx((2100 + 1400 + 1050) / 3600)
    assert "re-used, trained by ml/another; resumed" in Page(render_html(report)).words


def test_a_stage_on_a_cpu_takes_no_gpu_hours(tmp_path: Path):
    assert a_report(tmp_path, device="cpu (2 threads)").totals.gpu_hours == 0


def test_the_saved_state_of_a_running_stage_is_told(tmp_path: Path):
    relay = Relay(names=["mini"], accuracies=[0.93, 0.9], waiting=[PENDING])
    write_relay(tmp_path, relay)
    for source, step in (("0a", 300), ("0b", 800), ("f0", 100)):
        state = tmp_path / "stages" / PENDING.digest / "resume" / f"{source}-{step:09d}-a1-abc"
        state.mkdir(parents=True)
        (state / "index.json").write_text(json.dumps({"step": step, "of": 900, "elapsedS": 1}))
    (state / "index.json").with_name("broken").mkdir()
    (state / "broken" / "index.json").write_text("{")

    report = report_of(tmp_path, relay)

    assert report.stages[1].message == "a state at step 800 of 900 is saved"


def test_a_commit_that_the_status_knows_and_the_store_lacks_is_a_failure(tmp_path: Path):
    relay = Relay(names=["mini"], accuracies=[0.93, 0.9], waiting=[WantedStage("femto", "f" * 64, phase="Committed")])
    write_relay(tmp_path, relay)

    report = report_of(tmp_path, relay)

    assert report.outcome == "Failed"
    assert report.stages[1].message == "its commit is not in the store any more"


def test_a_committed_stage_that_failed_is_told_with_its_numbers(tmp_path: Path):
    """Its gate was tightened, or its commit is damaged."""
    write_relay(tmp_path, Relay())
    relay = Relay(names=["mini", "tiny"], waiting=[FAILED])

    report = report_of(tmp_path, relay)

    assert report.outcome == "Failed"
    assert report.verdict.startswith(
        "Failed at femto (GateNotMet) with 3 of 3 stages committed: student femto: accuracy 0.61 is under "
        "spec.stages[2].gate.minMetric 0.79. femto keeps 89.3 % (95 % interval"
    )
    assert "Failed: GateNotMet" in Page(render_html(report)).words
    assert "| femto | new weights; Failed: GateNotMet | 4.5 M |" in render_markdown(report)


def test_a_failed_fine_tuning_that_is_committed_is_told_at_the_teacher(tmp_path: Path):
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

    shown = [each for found in report.classes for each in (found.recall, found.precision, found.f1)]
    for stage in report.stages:
        assert stage.model is not None
        model = stage.model
        shown += [model.metric, model.accuracy, model.macro_f1, model.test, model.retention]
    assert len(shown) == 3 * 3 + 5 * 3
    for estimate in shown:
        assert estimate is not None
        assert estimate.low is not None
        assert estimate.high is not None
        assert estimate.low <= estimate.value <= estimate.high


def test_a_store_that_was_moved_is_told_where_it_lies_now(tmp_path: Path):
    write_relay(tmp_path / "there", Relay())
    (tmp_path / "there").rename(tmp_path / "here")

    report = report_of(tmp_path / "here", Relay())

    stored = walk_back(FileStore(f"file://{tmp_path}/here"), digest_of("femto"))
    assert report.manifests == manifests_digest(stored), "by which the trainer sees that it is current"
    assert [stage.run.checkpoint for stage in report.stages if stage.run] == [
        f"file://{tmp_path}/here/stages/{digest_of(stage.name)}/attempts/a1" for stage in report.stages
    ]


def test_walking_back_finds_the_chain_from_the_digest_of_its_last_stage(tmp_path: Path):
    store = write_relay(tmp_path, Relay(fine_tuned=True))

    assert [manifest.stage for manifest in walk_back(store, digest_of("femto"))] == ["teacher", "mini", "tiny", "femto"]
    (tmp_path / "stages" / digest_of("mini") / "manifest.json").unlink()
    with pytest.raises(Unreadable, match=r"manifest\.json is missing"):
        walk_back(store, digest_of("femto"))


def test_a_chain_that_names_itself_as_its_teacher_ends(tmp_path: Path):
    store = write_relay(tmp_path, Relay())
    manifest = json.loads((tmp_path / "stages" / digest_of("mini") / "manifest.json").read_text())
    rewrite_manifest(tmp_path, "mini", teacher=manifest["teacher"] | {"digest": digest_of("femto")})

    with pytest.raises(Unreadable, match="teacher's teacher"):
        walk_back(store, digest_of("femto"))


def test_names_with_markup_are_words_on_the_page_and_nothing_else(tmp_path: Path):
    labels = [f"{MARKUP} {number}" for number in range(2)]
    report = a_report(tmp_path, labels=labels, chain=MARKUP, text=MARKUP, device=MARKUP)

    page = Page(render_html(report))

    assert {tag for tag, _ in page.elements}.isdisjoint({"script", "img", "iframe", "object"})
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert labels[0] in page.words
    assert MARKUP in page.words
    lines = render_markdown(report).splitlines()
    assert not [line for line in lines if re.search(r"(?<!\\)<", line)]
    tables = [line for line in lines if line.startswith("|")]
    bars = [len(re.findall(r"(?<!\\)\|", line)) for line in tables]
    heads = [bars[place - 1] for place, line in enumerate(tables) if line.startswith("| ---")]
    assert set(bars) == set(heads), "no name begins a column"


@pytest.mark.parametrize("labels", [2, 8, 9, 150])
def test_few_classes_are_a_matrix_and_many_a_list_of_the_weakest(tmp_path: Path, labels: int):
    report = a_report(tmp_path, labels=[f"class {number}" for number in range(labels)], metric="macroF1")

    page = Page(render_html(report))

    matrices = [
        attributes for tag, attributes in page.elements if (tag, attributes.get("class")) == ("table", "matrix")
    ]
    assert len(matrices) == (1 if labels <= 8 else 0)
    assert ("The 20 of 150 classes with the least F1, on validation" in page.words) is (labels == 150)
    assert report.stages[0].model is not None
    assert report.stages[0].model.metric.low is not None


def test_every_id_of_a_page_is_there_once_and_what_is_pointed_at_exists(tmp_path: Path):
    page = Page(render_html(a_report(tmp_path)))

    assert len(page.ids) == len(set(page.ids))
    pointed = [value for _, attributes in page.elements for value in attributes.values() if value]
    for target in [found for value in pointed for found in re.findall(r"url\(#([^)]+)\)|^#(.+)$", value)]:
        assert "".join(target) in page.ids
    for _, attributes in page.elements:
        for name in (attributes.get("aria-labelledby") or "").split():
            assert name in page.ids


def test_a_page_asks_for_nothing(tmp_path: Path):
    text = render_html(a_report(tmp_path))

    page = Page(text)

    for tag, attributes in page.elements:
        for name in ("src", "href", "xlink:href", "action", "data", "poster"):
            assert (attributes.get(name) or "#").startswith(("#", "data:")), (tag, attributes)
    assert "@import" not in text
    assert "default-src 'none'" in text
    assert len(text) < 300_000


def test_the_same_store_gives_the_same_page(tmp_path: Path):
    relay = Relay()
    write_relay(tmp_path, relay)

    assert render_html(report_of(tmp_path, relay)) == render_html(report_of(tmp_path, relay))


def test_json_is_the_report_whole(tmp_path: Path):
    report = a_report(tmp_path)

    assert Report.parse(render(report, Format.JSON)) == report


def test_markdown_says_what_the_page_says(tmp_path: Path):
    report = a_report(tmp_path)

    text = render(report, Format.MARKDOWN)

    assert text.startswith("# Distillation report: ml/sst2-femto\n\n**femto keeps 89.3 %")
    assert "| mini |   | 79.8 M | 319.0 MB | 0.920 | 0.900–0.936 | 0.920 | 98.9 % |" in text
    assert "| teacher → last student | " in text
    assert "| negative | " in text
    assert "In all 1 h 15 min and 1.26 h of GPU; 0 of 3 committed stages re-used, 0 % of the time." in text
    assert TEACHER_PREDICTIONS_FILE not in text
