"""What differs between task types: a type without a section, a section that is added as a file, other directions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from distillchain_api import metrics
from distillchain_api.metrics import Metric
from distillchain_report import sections
from distillchain_report.model import Comparison, MetricFacts, ModelReport
from distillchain_report.render import Format, render, render_html, render_markdown
from distillchain_report.sections import section_of
from distillchain_report.sections.text_classification import TextClassificationSection
from distillchain_report.verdict import significance_sentence
from report.html import Page
from report.stores import Relay, digest_of, report_of, write_relay

pytestmark = pytest.mark.slow

SECTION = """
from distillchain_report.model import SectionDetails
from distillchain_report.section import Section, StageAnswers


class Answers(SectionDetails):
    praise: str


class ToySection(Section):
    def load(self, files):
        return StageAnswers(student=files.manifest.stage)

    def interval(self, metric, value, *, rows, answers):
        return value - 0.5, value + 0.5

    def details(self, student, *, root, texts):
        return Answers(praise=f"{student} toys well")

    def markdown(self, report):
        return ["## Toys", report.details.praise]


SECTION = ToySection
"""


def write_other_task(folder: Path, *, task: str = "WordOrder", metric: str = "swaps") -> Relay:
    """A chain of a task type that this release does not know, with its own metrics and predictions."""
    relay = Relay()
    write_relay(folder, relay)
    for place, name in enumerate(relay.names):
        path = folder / "stages" / digest_of(name) / "manifest.json"
        manifest: dict[str, Any] = json.loads(path.read_text())
        for model, value in ((manifest["teacher"], 20.0 + place), (manifest["student"], 21.0 + place)):
            model["metrics"] = {"validation": {metric: value, "length": 3.0}, "test": {metric: value, "length": 3.0}}
        manifest["recipe"]["task"] = {"type": task, "metric": metric}
        attempt = path.parent / "attempts" / "a1"
        for entry in manifest["files"]:
            if "predictions" in entry["path"]:
                (attempt / entry["path"]).write_text('{"order":[1,0]}\n')
        manifest["files"] = [entry for entry in manifest["files"] if "history" not in entry["path"]]
        path.write_text(json.dumps(manifest))
    return relay


def test_a_task_type_without_a_section_has_a_report_without_one(tmp_path: Path):
    relay = write_other_task(tmp_path)

    report = report_of(tmp_path, relay)

    assert report.verdict == "femto has swaps 23 with 4.5 M parameters; the teacher has 20 with 335 M."
    assert (report.details, report.chance, report.against_root) == (None, None, None)
    assert not [sentence for sentence in report.missing if "predictions" in sentence], "it has a format of its own"
    page = Page(render_html(report))
    assert {"chain", "kept", "steps", "time", "lineage", "environment"} <= set(page.ids)
    assert {"classes", "rows"}.isdisjoint(page.ids)
    assert "Swaps against compression" in page.words
    assert "WordOrder" in page.text
    assert "swaps kept" not in page.text
    assert "| femto | new weights | 4.5 M | 18.1 MB | 23 |" in render(report, Format.MARKDOWN)
    assert json.loads(render(report, Format.JSON))["stages"][2]["model"]["metrics"]["length"]["value"] == 3.0


def test_a_section_is_added_by_its_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "sections").mkdir()
    (tmp_path / "sections" / "word_order.py").write_text(SECTION)
    monkeypatch.setattr(sections, "__path__", [*sections.__path__, str(tmp_path / "sections")])
    relay = write_other_task(tmp_path / "store")

    report = report_of(tmp_path / "store", relay)

    assert report.stages[2].model is not None
    assert report.stages[2].model.metric.high == 23.5
    assert "## Toys\n\nfemto toys well" in render_markdown(report)
    assert json.loads(render(report, Format.JSON))["details"] == {"praise": "femto toys well"}


def test_a_section_is_named_like_its_task_type(monkeypatch: pytest.MonkeyPatch):
    assert type(section_of({"type": "TextClassification"})) is TextClassificationSection
    assert sections._module_name("CausalLM") == "causal_lm"
    assert sections._module_name("MultiLabelClassification") == "multi_label_classification"


@pytest.mark.parametrize("name", ["", "os", "../load", "text_classification.scores"])
def test_a_store_cannot_name_any_other_module_as_its_section(name: str):
    assert type(section_of({"type": name})).__name__ == "Section"


@pytest.mark.parametrize("difference, want", [(-0.4, "The drop in perplexity is"), (0.4, "The rise in perplexity is")])
def test_a_change_is_named_by_its_direction(difference: float, want: str):
    perplexity = MetricFacts.of(Metric("perplexity", "perplexity", higher_is_better=False, is_share=False))

    assert significance_sentence(Comparison(difference=difference, p_value=0.01), perplexity).startswith(want)


def test_retention_is_that_of_the_status(tmp_path: Path):
    """Which has metrics of four decimals only."""
    relay = Relay(rows=301)
    write_relay(tmp_path, relay)

    report = report_of(tmp_path, relay)

    def shown(model: ModelReport) -> float:
        return float(metrics.format_for_status(model.metric.value, metrics.ACCURACY))

    assert report.root is not None
    for stage in report.stages:
        assert stage.model is not None
        assert stage.model.retention is not None
        assert stage.model.retention.value == shown(stage.model) / shown(report.root)
