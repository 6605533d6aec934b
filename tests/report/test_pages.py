"""The report as HTML, Markdown and JSON: what they show, and that text from the store never becomes markup."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from distillchain_api.wire.manifest import SelectedEpoch
from distillchain_report.render import Format, render, render_html, render_markdown
from report.html import Page
from report.stores import MARKUP, Relay, a_report, report_of, write_pass, write_relay

pytestmark = pytest.mark.slow


def test_names_with_markup_are_words_on_the_page_and_nothing_else(tmp_path: Path):
    labels = [f"{MARKUP} {number}" for number in range(2)]
    warnings = {"mini": [f"{MARKUP} warning"]}
    report = a_report(
        tmp_path, labels=labels, chain=MARKUP, text=MARKUP, device=MARKUP, warnings=warnings, doubt=MARKUP
    )

    page = Page(render_html(report))

    assert {tag for tag, _ in page.elements}.isdisjoint({"script", "img", "iframe", "object"})
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert labels[0] in page.words
    assert MARKUP in page.words
    assert f"mini: {MARKUP} warning" in page.text
    lines = render_markdown(report).splitlines()
    assert not [line for line in lines if re.search(r"(?<!\\)<", line)]
    tables = [line for line in lines if line.startswith("|")]
    bars = [len(re.findall(r"(?<!\\)\|", line)) for line in tables]
    heads = [bars[place - 1] for place, line in enumerate(tables) if line.startswith("| ---")]
    assert set(bars) == set(heads), "no name begins a column"


@pytest.mark.parametrize("rows, is_said", [(400, True), (None, False)])
def test_exports_that_were_measured_on_a_part_of_validation_say_so(tmp_path: Path, rows: int | None, is_said: bool):
    report = a_report(tmp_path, exported=["mini", "tiny"], exported_rows=rows)

    assert [export.rows for stage in report.stages for export in stage.exports] == [rows] * 6
    sentence = "Exports of mini, tiny were measured on 400 of 872 rows of validation."
    assert (sentence in render_markdown(report)) is is_said
    assert (f"PyTorch’s. {sentence}" in Page(render_html(report)).text) is is_said


@pytest.mark.parametrize("labels", [2, 12, 13, 150])
def test_few_classes_are_a_matrix_and_many_a_list_of_the_weakest(tmp_path: Path, labels: int):
    report = a_report(tmp_path, labels=[f"class {number}" for number in range(labels)], metric="macroF1")

    page = Page(render_html(report))

    assert page.tables("matrix") == (1 if labels <= 12 else 0)
    assert ("The 20 of 150 classes with the lowest F1, on validation" in page.words) is (labels == 150)
    assert {"recall", "precision", "F1"} <= set(page.words)
    assert report.stages[0].model is not None
    assert report.stages[0].model.metric.low is not None


def test_precision_and_f1_of_each_class_are_on_every_form_of_the_report(tmp_path: Path):
    report = a_report(tmp_path, labels=["low", "middle", "high"])
    found = report.details.classes[2]  # type: ignore[union-attr]  # of the section

    words, markdown = Page(render_html(report)).text, render_markdown(report)

    for estimate in (found.recall, found.precision, found.f1):
        assert f"{estimate.value:.3f}" in words
        assert f"| {estimate.value:.3f} | {estimate.low:.3f}–{estimate.high:.3f} |" in markdown
    (high,) = [
        each for each in json.loads(render(report, Format.JSON))["details"]["classes"] if each["label"] == "high"
    ]
    assert high["precision"]["value"] == found.precision.value
    assert high["f1"]["low"] == found.f1.low


def test_latencies_are_on_every_form_of_the_report_with_their_device(tmp_path: Path):
    report = a_report(tmp_path, latency=(1.234, 148.2), device="cpu (2 threads)")

    page = Page(render_html(report))

    assert page.words.count("1.23 ms") == page.words.count("148 ms") == 4
    assert "Latency: one row at batch size 1 on cpu (2 threads)." in page.words
    assert "| 1.23 ms | 148 ms |" in render_markdown(report)
    root = json.loads(render(report, Format.JSON))["root"]
    assert (root["latencyP50Ms"], root["latencyP95Ms"]) == (1.234, 148.2)


def test_a_chosen_epoch_is_on_every_form_of_the_report_with_what_it_means_for_validation(tmp_path: Path):
    report = a_report(tmp_path, selected={"tiny": SelectedEpoch(epoch=3, step=600, trained_epochs=5)})
    sentence = (
        "Validation chose the epoch of tiny, so metrics on validation are slightly too good; test had no part in it."
    )

    for text in (Page(render_html(report)).text, render_markdown(report)):
        assert "epoch 3 of 5 chosen on validation" in text
        assert sentence in text
    without = a_report(tmp_path / "without")
    assert "chosen on validation" not in render_markdown(without)
    assert "Validation chose" not in Page(render_html(without)).text


def test_several_teachers_are_on_every_form_of_the_report_with_their_shares(tmp_path: Path):
    report = a_report(tmp_path, further_teachers={"tiny": 0.25})
    run = report.stages[1].run
    assert run is not None
    assert run.further_teachers[0].metric is not None

    for text in (Page(render_html(report)).text, render_markdown(report)):
        assert re.search(r"mini \(75 %, 0\.9\d+\) and teacher \(25 %, 0\.9\d+\)", text.replace("\u00a0", " "))


def test_a_report_without_latencies_has_no_such_columns(tmp_path: Path):
    report = a_report(tmp_path)

    assert "atency" not in render_markdown(report)
    assert "latency p50" not in Page(render_html(report)).words


def test_every_id_of_a_page_is_unique_and_every_reference_has_a_target(tmp_path: Path):
    page = Page(render_html(a_report(tmp_path, warnings={"mini": ["a warning"]})))

    assert len(page.ids) == len(set(page.ids))
    pointed = [value for _, attributes in page.elements for value in attributes.values() if value]
    for target in [found for value in pointed for found in re.findall(r"url\(#([^)]+)\)|^#(.+)$", value)]:
        assert "".join(target) in page.ids
    for _, attributes in page.elements:
        for name in (attributes.get("aria-labelledby") or "").split():
            assert name in page.ids


def test_a_page_loads_nothing(tmp_path: Path):
    text = render_html(a_report(tmp_path))

    page = Page(text)

    for tag, attributes in page.elements:
        for name in ("src", "href", "xlink:href", "action", "data", "poster"):
            assert (attributes.get(name) or "#").startswith(("#", "data:")), (tag, attributes)
    assert "@import" not in text
    assert "default-src 'none'" in text
    assert len(text) < 300_000


def test_the_same_store_gives_the_same_page(tmp_path: Path):
    relay = Relay(metric="macroF1")
    write_relay(tmp_path, relay)

    assert render_html(report_of(tmp_path, relay)) == render_html(report_of(tmp_path, relay))


def test_json_has_numbers_as_numbers(tmp_path: Path):
    report = json.loads(render(a_report(tmp_path), Format.JSON))

    assert (report["outcome"], report["metric"]["name"]) == ("Succeeded", "accuracy")
    femto = report["stages"][2]
    assert femto["model"]["metrics"]["accuracy"]["value"] == femto["model"]["metric"]["value"]
    assert femto["model"]["retention"]["value"] == pytest.approx(0.83 / 0.93, abs=1e-3)
    assert femto["againstTeacher"]["pValue"] < 0.001
    assert sum(femto["againstTeacher"]["counts"].values()) == 872
    assert report["chance"] == {
        "value": pytest.approx(0.522, abs=1e-3),
        "guesser": "always naming the most frequent class",
    }


def test_the_time_of_a_teacher_pass_is_part_of_the_total_and_shown_by_itself(tmp_path: Path):
    """15.1 minutes of eight GPUs."""
    write_relay(tmp_path, Relay())
    before = report_of(tmp_path, Relay())
    manifest = write_pass(tmp_path, "tiny", elapsed_s=907.2, processes=8)

    report = report_of(tmp_path, Relay())
    manifest.unlink()
    without = report_of(tmp_path, Relay())

    assert before.totals.pass_gpu_hours == without.totals.pass_gpu_hours == 0
    assert f"tiny: no time of its teacher pass: file://{manifest} is missing" in without.missing
    assert not report.missing
    assert report.totals.gpu_hours == pytest.approx(before.totals.gpu_hours + 2.016)
    assert report.totals.elapsed_s == pytest.approx(before.totals.elapsed_s + 907.2)
    text, page = render(report, Format.MARKDOWN), render(report, Format.HTML)
    assert "3.28 h on GPUs, of which 2.02 h for teacher passes; 0 of 3" in text
    assert "3.28 h on GPUs, of which 2.02 h for teacher passes; 0 of 3" in page
    assert "| tiny: teacher pass | 15 min 07 s |" in text
    assert '<span class="quiet"> teacher pass</span>' in page


def test_markdown_says_what_the_page_says(tmp_path: Path):
    text = render(a_report(tmp_path), Format.MARKDOWN)

    assert text.startswith("# Distillation report: ml/sst2-femto\n\n**Succeeded. femto keeps 89.3 %")
    assert "| mini |   | 79.8 M | 319.0 MB | 0.920 | 0.900–0.936 | 0.920 | 98.9 % |" in text
    assert "| root teacher → femto | -0.100 | \\< 0.001 |" in text
    assert "| negative | " in text
    assert "1 h 15 min in total, 1.26 h on GPUs; 0 of 3 committed stages reused, which is 0 % of the time." in text
    assert "epochs 4, batch 32, rate 0.0001, schedule linear, seed 42, temperature 1.0, alpha 1.0" in text


def test_a_student_that_is_larger_than_its_teacher_has_as_many_parameters_and_not_fewer(tmp_path: Path):
    report = a_report(tmp_path)
    first = report.stages[0]
    assert first.model is not None
    larger = first.model_copy(update={"model": first.model.model_copy(update={"compression": 0.9})})

    page = render_html(report.model_copy(update={"stages": [larger, *report.stages[1:]]}))

    assert re.search(r"mini: [0-9.]+\s%\sat 1\.1× as many parameters; tiny: [0-9.]+\s%\sat [0-9.]+× fewer", page)
