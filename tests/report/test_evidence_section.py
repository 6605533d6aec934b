"""The section of the report on whether the steps paid, made from committed students and the verdict on them."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import pytest

from distillchain_api.layout import report_key
from distillchain_report.evidence_files import load_evidence
from distillchain_report.evidence_section import METHOD
from distillchain_report.model import Report
from distillchain_report.render import Format, render
from distillchain_store.folder import FileStore
from distillchain_trainer.stage.report import ensure_report
from report.controlled import LATER, PARAMETERS, a_controlled_plan, commit_controlled, report_on, weigh_students
from report.html import Page
from report.plans import commit_stages


def section_of(report: Report) -> str:
    """The HTML of the section."""
    page = render(report, Format.HTML)
    return page[page.index('<h2 id="evidence">') :].partition("</section>")[0]


OUTCOMES = [
    ({"chain": 0.90, "from_root": 0.86, "direct": 0.80}, "Worth it", "The chain is better than FromRoot"),
    ({"chain": 0.85, "from_root": 0.88, "direct": 0.80}, "Not worth it", "FromRoot is better than the chain"),
    ({"chain": 0.85, "from_root": 0.82, "direct": 0.75, "spread": 0.02}, "Undecided", "The chain and FromRoot cannot"),
]


@pytest.mark.parametrize(("accuracies", "outcome", "words"), OUTCOMES)
def test_each_outcome_in_each_format(tmp_path: Path, accuracies: dict[str, float], outcome: str, words: str):
    plan = a_controlled_plan()
    report = report_on(commit_controlled(tmp_path, plan, **accuracies), plan)

    assert report.evidence
    sentence = report.evidence.last.sentence
    assert sentence.startswith(words)
    assert report.verdict.endswith(sentence)
    assert f"{outcome}: {sentence}" in Page(section_of(report)).text
    markdown = render(report, Format.MARKDOWN)
    assert f"**{outcome}** (tiny). {sentence}" in markdown
    assert METHOD in markdown
    document = json.loads(render(report, Format.JSON))
    assert document["evidence"]["stages"][0]["sentence"] == sentence
    if outcome == "Undecided":
        assert f"about {report.evidence.last.seeds_to_decide} seeds" in sentence


def test_the_table_has_a_row_for_each_arm(tmp_path: Path):
    plan = a_controlled_plan()
    report = report_on(commit_controlled(tmp_path, plan, chain=0.90, from_root=0.86, direct=0.80), plan)

    lines = render(report, Format.MARKDOWN).split("## Were the steps in between worth it?")[1].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    head, _, chain, direct, from_root = rows[:5]

    assert head[:6] == ["students", "taught by", "seeds", "accuracy", "95 % interval", "chain minus it"]
    assert chain[:4] == ["chain", "the stages of the chain", "3", "0.901"]
    assert direct[:6] == ["Direct", "labels alone", "3", "0.801", direct[4], "+0.100"]
    assert from_root[:6] == ["FromRoot", "the root teacher", "3", "0.861", from_root[4], "+0.040"]
    # Half an hour for each stage: the chain also needs mini.
    assert [row[-1] for row in (chain, direct, from_root)] == ["1.00 h", "0.50 h", "0.50 h"]


def test_a_chain_of_one_stage_is_asked_about_teaching(tmp_path: Path):
    plan = a_controlled_plan(stages=["tiny"], controls=["Direct"])
    report = report_on(commit_controlled(tmp_path, plan, chain=0.90, from_root=0.86, direct=0.80), plan)

    assert "Was teaching worth it?" in section_of(report)
    markdown = render(report, Format.MARKDOWN)
    assert "## Was teaching worth it?" in markdown
    assert "teaching paid." in markdown
    assert "steps in between" not in markdown


def test_the_plot_shows_each_mean_with_its_interval_and_each_seed(tmp_path: Path):
    plan = a_controlled_plan()
    report = report_on(commit_controlled(tmp_path, plan, chain=0.90, from_root=0.86, direct=0.80, spread=0.01), plan)

    page = Page(section_of(report))

    assert "chain: mean 0.910 (0.8" in page.text
    assert "seeds 0.900, 0.910, 0.920; Direct: mean 0.810" in page.text
    # A dot for each of nine seeds, a diamond for each mean, and the ends of three intervals.
    assert sum(tag == "use" for tag, _ in page.elements) >= 9 + 3 + 6


def test_a_chain_without_controls_has_no_section(tmp_path: Path):
    plan = a_controlled_plan()
    commit_stages(tmp_path, plan.stages, {"teacher": 0.93, "mini": 0.91, "tiny": 0.85}, parameters=PARAMETERS)
    report = report_on(FileStore(f"file://{tmp_path}"), plan)

    assert report.evidence is None
    assert 'id="evidence"' not in render(report, Format.HTML)
    assert "Were the steps" not in render(report, Format.MARKDOWN)


def test_every_stage_that_was_judged_is_shown_the_last_one_first(tmp_path: Path):
    plan = a_controlled_plan(stages=("mini", "tiny", "femto"), controls=["Direct"], on="Every")
    accuracies = defaultdict(lambda: 0.8, teacher=0.93, mini=0.91, tiny=0.88)
    students = [*plan.stages, *(vertex for vertex in plan.evidence if vertex.work_order.evidence is None)]
    commit_stages(tmp_path, students, accuracies, parameters=PARAMETERS)
    store = weigh_students(tmp_path, plan)

    page = Page(section_of(report_on(store, plan)))

    shown = [attributes["aria-label"] for tag, attributes in page.elements if attributes.get("role") == "region"]
    document = load_evidence(store, plan.students[-1].digest, chain="default/relay").document
    assert document
    judged = [stage.stage for stage in document.stages]
    assert len(judged) > 1
    assert shown == [f"The chain and its controls, {stage}" for stage in reversed(judged)]


def test_a_verdict_on_students_that_were_trained_again_is_not_used(tmp_path: Path):
    plan = a_controlled_plan()
    store = commit_controlled(tmp_path, plan, chain=0.90, from_root=0.86, direct=0.80)
    path = tmp_path / "stages" / plan.stages[-1].digest / "manifest.json"
    document = json.loads(path.read_text())
    path.write_text(json.dumps(document | {"committedAt": "2026-01-02T00:00:00Z"}))

    report = report_on(store, plan)

    assert report.evidence is None
    assert f"no verdict: the one of {LATER} is not used, because tiny was trained again after it" in report.missing


def test_a_verdict_that_cannot_be_read_is_named(tmp_path: Path):
    plan = a_controlled_plan()
    store = commit_controlled(tmp_path, plan, chain=0.90, from_root=0.86, direct=0.80)
    (path,) = tmp_path.glob("stages/*/evidence/*.json")
    path.write_text("{}")

    found = load_evidence(store, plan.students[-1].digest, chain="default/relay")

    assert found.document is None
    assert found.missing[0].startswith(f"no verdict: {store.uri}/stages/")


def test_each_chain_with_the_same_student_shows_its_own_verdict(tmp_path: Path):
    plan, other = a_controlled_plan(smallest_gain=0.01), a_controlled_plan(smallest_gain=0.2)
    commit_controlled(tmp_path, plan, chain=0.90, from_root=0.86, direct=0.80)
    store = weigh_students(tmp_path, other, made_at="2026-01-01T14:00:00Z")

    report = report_on(store, plan)
    last = plan.students[-1].digest
    ensure_report(store, "default/relay", last, adopted=False, verdict=plan.evidence[-1].digest)

    assert report.evidence
    assert report.evidence.digest == plan.evidence[-1].digest
    assert "A gain below 0.010 does not count" in store.read(report_key(last)).decode()


def test_a_verdict_of_another_chain_is_named(tmp_path: Path):
    plan = a_controlled_plan()
    store = commit_controlled(tmp_path, plan, chain=0.90, from_root=0.86, direct=0.80)

    found = load_evidence(store, plan.students[-1].digest, chain="default/other")

    assert found.document
    assert found.missing == [
        "no verdict on this chain itself: the verdict on default/relay is shown, which ends with the same student"
    ]


def test_the_newest_verdict_is_used(tmp_path: Path):
    plan = a_controlled_plan()
    store = commit_controlled(tmp_path, plan, chain=0.90, from_root=0.86, direct=0.80)
    (path,) = tmp_path.glob("stages/*/evidence/*.json")
    older = json.loads(path.read_text()) | {"madeAt": "2026-01-01T12:30:00Z", "chain": "default/older"}
    path.with_name(f"{'0' * 64}.json").write_text(json.dumps(older))

    found = load_evidence(store, plan.students[-1].digest, chain="default/relay")

    assert found.document
    assert found.document.made_at == LATER
