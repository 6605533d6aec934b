"""The verdict of a report and its badge: what came out, how certain it is, and when it is doubtful."""

from __future__ import annotations

from pathlib import Path

import pytest

from distillchain_api.wire.records import PREDICTIONS_FILE
from distillchain_report.render import Format, render, render_html, render_markdown
from distillchain_report.verdict import badge
from report.html import Page
from report.stores import FAILED, PENDING, a_report

pytestmark = pytest.mark.slow

DOUBT = "accuracy 0.517 on 872 validation rows could be luck: guessing as often for each class reaches 0.5"
SIX = [f"class {number}" for number in range(6)]


@pytest.mark.parametrize(
    "parts, want",
    [
        pytest.param(
            {},
            "femto keeps 89.3 % (95 % interval 87.1–91.3 %) of the teacher’s accuracy (0.830 of 0.930) with 1/74 of its "
            "parameters (4.5 M of 335 M). The drop in accuracy is statistically significant (paired permutation test, "
            "p < 0.001).",
            id="succeeded, with a drop",
        ),
        pytest.param(
            {"names": ["femto"], "accuracies": [0.93, 0.93]},
            "femto reaches 100.0 % (95 % interval 98.4–101.6 %) of the teacher’s accuracy (0.930 of 0.930) with 24 % of its "
            "parameters (79.8 M of 335 M). The difference in accuracy is not statistically significant (paired permutation "
            "test, p = 1.000).",
            id="as good as its teacher",
        ),
        pytest.param(
            {"names": ["mini", "tiny"], "accuracies": [0.93, 0.92, 0.89], "waiting": [FAILED]},
            "Failed at femto (GateNotMet) with 2 of 3 stages committed: student femto: accuracy 0.61 is below "
            "spec.stages[2].gate.minMetric 0.79. tiny so far keeps",
            id="failed",
        ),
        pytest.param(
            {"names": ["mini", "tiny"], "accuracies": [0.93, 0.92, 0.89], "waiting": [PENDING]},
            "Not finished: 2 of 3 stages committed; femto: not started, or nothing saved yet. tiny so far keeps 95.7 %",
            id="half done",
        ),
        pytest.param(
            {"names": [], "accuracies": [0.93], "waiting": [PENDING]},
            "Not finished: 0 of 1 stages committed; femto: not started, or nothing saved yet.",
            id="nothing committed",
        ),
        pytest.param(
            {"fine_tuned": True},
            "femto keeps 89.3 % (95 % interval 87.1–91.3 %) of the teacher’s accuracy (0.830 of 0.930)",
            id="a fine-tuned teacher",
        ),
        pytest.param(
            {"names": [], "accuracies": [0.93], "fine_tuned": True, "waiting": [PENDING]},
            "Not finished: 1 of 2 stages committed; femto: not started, or nothing saved yet. teacher is fine-tuned: "
            "accuracy 0.930 (95 % interval 0.911–0.945) with 335 M parameters.",
            id="only the teacher fine-tuned",
        ),
        pytest.param(
            {"files": [PREDICTIONS_FILE]},
            "femto keeps 89.3 % of the teacher’s accuracy (0.830 of 0.930) with 1/74 of its parameters (4.5 M of 335 M). "
            "The store lacks what is needed to test whether the difference is statistically significant.",
            id="without the teacher's predictions",
        ),
    ],
)  # fmt: skip
def test_the_verdict_says_what_came_out(tmp_path: Path, parts: dict[str, object], want: str):
    report = a_report(tmp_path, **parts)

    assert report.verdict.startswith(want)
    assert report.doubts == []


def test_a_significant_rise_is_called_a_rise(tmp_path: Path):
    report = a_report(tmp_path, names=["femto"], accuracies=[0.7, 0.93])

    assert report.verdict.startswith("femto reaches 133.0 %")
    assert "The rise in accuracy is statistically significant (paired permutation test, p < 0.001)." in report.verdict


def test_the_significance_is_that_of_the_metric_which_the_chain_names(tmp_path: Path):
    report = a_report(tmp_path, metric="macroF1", labels=["low", "middle", "high"])

    assert "The drop in macro F1 is statistically significant (paired permutation test, p < 0.001)." in report.verdict
    assert report.against_root is not None
    assert report.against_root.difference == pytest.approx(
        report.stages[-1].model.metrics["macroF1"].value - report.root.metrics["macroF1"].value  # type: ignore[union-attr]  # all three are committed
    )


def test_the_trainers_doubt_decides_that_random_guesses_have_not_learned_the_task(tmp_path: Path):
    """Guesses reach a macro F1 of 0.5, far above the 0.333 of a constant answer."""
    report = a_report(tmp_path, metric="macroF1", accuracies=[0.93, 0.92, 0.89, 0.52], doubt=DOUBT)

    assert report.verdict.startswith(f"femto may not have learned the task: {DOUBT}. Its macro F1 is 0.5")
    assert "the teacher’s is 0.930." in report.verdict
    assert "keeps" not in report.verdict
    assert report.chance is not None
    assert report.chance.value == pytest.approx(0.5, abs=0.01)


def test_a_doubtful_success_has_no_green_badge(tmp_path: Path):
    report = a_report(tmp_path, doubt=DOUBT)

    html = render_html(report)

    assert badge(report) == "Succeeded, doubtful"
    assert '<span class="outcome doubtful">Succeeded, doubtful</span>' in html
    assert "may not have learned the task" in Page(html).words, "at the student, too"
    assert "**Succeeded, doubtful. femto may not have learned the task" in render(report, Format.MARKDOWN)
    assert '"doubts": [\n    "femto may not have learned the task' in render(report, Format.JSON)


def test_a_fine_tuned_teacher_can_be_doubtful_too(tmp_path: Path):
    report = a_report(tmp_path, fine_tuned=True, names=[], accuracies=[0.55], waiting=[PENDING], doubt=DOUBT)

    assert f"teacher may not have learned the task: {DOUBT}. Its accuracy is 0.550" in report.verdict


def test_a_student_that_never_predicts_some_classes_is_doubtful(tmp_path: Path):
    never = {"class 3": "class 0", "class 4": "class 0", "class 5": "class 1"}
    report = a_report(tmp_path, labels=SIX, never=never)

    assert report.doubts == ["femto never predicts 3 of 6 classes of validation: class 3, class 4, class 5"]
    assert f" {report.doubts[0]}. The drop in accuracy" in report.verdict
    assert badge(report) == "Succeeded, doubtful"


def test_a_class_with_very_few_rows_may_be_missed_without_doubt(tmp_path: Path):
    report = a_report(tmp_path, labels=SIX, rows=12, never={"class 5": "class 0"})

    assert 0 < report.details.classes[5].rows < 5  # type: ignore[union-attr]  # of the section
    assert report.doubts == []


def test_warnings_are_counted_beside_the_verdict_and_listed_with_their_stages(tmp_path: Path):
    of_data, of_femto = "no row of train is of class <i>high</i>", "it never predicts 1 of 2 classes"
    warnings = {"mini": [of_data], "tiny": [of_data], "femto": [of_data, of_femto]}

    report = a_report(tmp_path, warnings=warnings)

    page = Page(render_html(report))
    assert "2 warnings" in page.words
    assert "warnings" in page.ids
    assert f"all stages: {of_data}" in page.text
    assert f"femto: {of_femto}" in page.text
    assert "i" not in {tag for tag, _ in page.elements}
    text = render_markdown(report)
    assert "2 warnings, see below." in text
    assert "- femto: it never predicts 1 of 2 classes" in text
    assert [len(stage.warnings) for stage in report.stages] == [1, 1, 2]


def test_a_chain_without_warnings_mentions_none(tmp_path: Path):
    report = a_report(tmp_path)

    assert "warnings" not in Page(render_html(report)).ids
    assert "## Warnings" not in render_markdown(report)
