"""Tables and live views, tested on plain values."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.progress import Progress, TextColumn

from chain_builders import a_commit, a_document, a_plan
from distillchain_api.graph import Plan
from distillchain_api.metrics import Metric
from distillchain_api.resource.status import ChainStatus, ExportStatus
from distillchain_api.wire.answer import Committed, FurtherTeacherSummary, parse_answer
from distillchain_api.wire.answer import Progress as Line
from distillchain_api.wire.manifest import SelectedEpoch
from distillchain_api.yaml_text import load_yaml
from distillchain_cli.local.bars import BarsView
from distillchain_cli.local.live import PlainView
from distillchain_cli.local.run import build_status
from distillchain_cli.local.table import results_table
from distillchain_cli.output.columns import Column, count, duration, format_columns, rate, size
from distillchain_cli.output.output import Output
from distillchain_cli.output.printing import document_text
from distillchain_cli.status.view import status_text
from distillchain_operator.status.committed import committed_entry
from distillchain_trainer.launch.termination import encode_answer

WARNINGS = ["class high is never predicted", "17 rows are in train and in validation"]


def a_status(plan: Plan, committed: int = 2) -> ChainStatus:
    """The first stages are committed. The second started from new weights and was already committed."""
    entries = []
    for index, stage in enumerate(plan.stages[:committed]):
        commit = a_commit(stage, accuracy=0.88 - index / 20, parameters=(11_170_000, 242_700)[index], reused=index == 1)
        entries.append(committed_entry(stage, commit.model_copy(update={"pretrained": index == 0}), attempt=1))
    return build_status(plan, entries)


def test_the_table_shows_what_each_stage_cost_and_how_much_it_retains():
    plan = a_plan()

    table = results_table(plan, a_status(plan))

    assert table.splitlines() == [
        "STAGE    PARAMETERS      SIZE  ACCURACY  TEST  RETAINED  SMALLER  EXAMPLES/S     TIME",
        "teacher       22.7M   90.8 MB    0.9200     -    100.0%     1.0x           -        -",
        "mini          11.2M   44.7 MB    0.8800     -     95.7%     2.0x           -  0:00:41",
        "tiny *+      242.7K  970.8 kB    0.8300     -     90.2%    93.5x           -  0:00:41",
        "",
        "* started from new weights, not pretrained",
        "+ already committed, not trained in this run",
        "accuracy: on validation; test: accuracy on test; retained: share of the teacher's accuracy on validation",
    ]


def test_doubt_and_the_number_of_warnings_of_a_stage_are_below_the_table():
    plan = a_plan()
    status = a_status(plan)
    doubt = "may not have learned the task: why"
    status.stages[1] = status.stages[1].model_copy(update={"message": doubt, "warnings": WARNINGS})

    assert results_table(plan, status).splitlines()[-3:-1] == [
        "tiny may not have learned the task: why",
        "tiny: 2 warnings, printed on stderr",
    ]


def test_the_chosen_epoch_and_further_teachers_of_a_stage_are_below_both_tables():
    plan = a_plan()
    commit = a_commit(plan.stages[0]).model_copy(
        update={
            "selected": SelectedEpoch(epoch=3, step=90, trained_epochs=5),
            "further_teachers": [
                FurtherTeacherSummary(name="teacher", share=1 / 3, metric=0.92),
                FurtherTeacherSummary(name="hf://acme/other", share=0.1667, metric=0.91),
            ],
        }
    )
    answer = parse_answer(encode_answer(commit).decode())
    assert isinstance(answer, Committed)
    status = build_status(plan, [committed_entry(plan.stages[0], answer)])
    want = [
        "mini: epoch 3 of 5 chosen on validation",
        "mini: taught by the stage before (50 %), teacher (33 %, 0.9200) and hf://acme/other (17 %, 0.9100)",
    ]

    assert results_table(plan, status).splitlines()[-3:-1] == want
    assert (
        status_text(a_document() | {"metadata": {"namespace": "ml", "name": "relay"}}, status).splitlines()[-2:] == want
    )
    # As status has it on a cluster.
    entry = status.stages[0].to_document()
    assert entry["selectedEpoch"] == {"epoch": 3, "trainedEpochs": 5}
    assert entry["furtherTeachers"][0] == {"name": "teacher", "share": "0.3333", "metric": "0.9200"}


@pytest.mark.parametrize("position, stage", [(0, "teacher"), (1, "tiny")])
def test_exports_of_a_stage_are_below_the_table(position: int, stage: str):
    plan = a_plan(teacher={"model": "hf://org/teacher", "fineTune": {}}, stages=["tiny"])
    status = a_status(plan)
    export = ExportStatus(
        format="onnx-int8",
        uri="s3://models/x/model.int8.onnx",
        size_bytes=250_000,
        metric="0.8290",
        examples_per_second="4120.7",
        pytorch_examples_per_second="2010.0",
    )
    status.stages[position] = status.stages[position].model_copy(update={"exports": [export]})

    assert (
        f"{stage}: onnx-int8: 250.0 kB, accuracy 0.8290, 4121 examples/s (PyTorch 2010): s3://models/x/model.int8.onnx"
    ) in results_table(plan, status).splitlines()


def test_a_fine_tuned_root_teacher_has_one_row():
    plan = a_plan(teacher={"model": "hf://org/teacher", "fineTune": {}}, stages=["mini"])

    table = results_table(plan, a_status(plan))

    assert [line.split()[0] for line in table.splitlines()[:3]] == ["STAGE", "teacher", "mini"]


def test_the_table_fits_100_columns_with_the_longest_names():
    plan = a_plan(stages=["a" * 32, "b" * 32])

    lines = results_table(plan, a_status(plan)).splitlines()

    assert max(map(len, lines[:4])) <= 100
    assert "..." in lines[2]


def test_a_stage_without_numbers_shows_a_dash():
    plan = a_plan()

    tiny = results_table(plan, a_status(plan, committed=1)).splitlines()[3]

    assert tiny.split() == ["tiny", *["-"] * 8]


def test_names_are_cut_only_where_nothing_else_can_be():
    columns = [Column("NAME", is_name=True), Column("MESSAGE")]

    assert format_columns(columns, [["a" * 20, "b" * 15]], width=34).splitlines()[1] == f"{'a' * 20}  {'b' * 9}..."
    assert format_columns(columns, [["a" * 20, "b" * 15]], width=30).splitlines()[1] == f"{'a' * 13}...  {'b' * 9}..."


def test_the_widest_text_column_shrinks_first():
    text = format_columns([Column("A"), Column("N", right=True)], [["long words", "1"], ["b", ""]], width=10)

    assert text.splitlines() == ["A        N", "long...  1", "b        -"]


@pytest.mark.parametrize(
    "shown, want",
    [
        (count(242_746), "242.7K"),
        (count(999_960), "1.0M"),
        (count(22_713_216), "22.7M"),
        (count(340), "340"),
        (count(None), "-"),
        (size(970_800), "970.8 kB"),
        (size(90_852_864), "90.9 MB"),
        (size(12), "12 B"),
        (duration(41.26), "0:00:41"),
        (duration("3725.0"), "1:02:05"),
        (duration(None), "-"),
        (rate("812.3"), "812"),
        (rate(4.25), "4.2"),
        (rate(None), "-"),
    ],
)
def test_numbers_have_a_short_form(shown: str, want: str):
    assert shown == want


def a_line(step: int, *, phase: str = "Train") -> Line:
    return Line.model_validate(
        {
            "stage": "tiny",
            "phase": phase,
            "step": step,
            "of": 600,
            "loss": 0.4123,
            "examplesPerSecond": 812.3,
            "etaS": 41.2,
        }
    )


def test_plain_progress_is_printed_every_five_seconds_and_at_each_new_phase():
    stream, now = io.StringIO(), [100.0]
    view = PlainView(stream, metric="accuracy", clock=lambda: now[0])

    for seconds, line in [(0, a_line(120)), (4, a_line(130)), (5, a_line(140)), (6, a_line(1, phase="Evaluate"))]:
        now[0] = 100.0 + seconds
        view.progress(line)

    assert stream.getvalue().splitlines() == [
        "stage tiny: train 120/600 loss 0.41 812 examples/s eta 0:00:41",
        "stage tiny: train 140/600 loss 0.41 812 examples/s eta 0:00:41",
        "stage tiny: evaluate 1/600 loss 0.41 812 examples/s eta 0:00:41",
    ]


def test_a_plain_view_prints_the_warnings_of_a_stage_when_it_ends():
    stream = io.StringIO()
    entry = a_status(a_plan()).stages[0].model_copy(update={"warnings": WARNINGS})

    PlainView(stream, metric="accuracy").ended(entry)

    first, *warnings = stream.getvalue().splitlines()
    assert first.startswith("stage mini: committed after 0:00:41, accuracy 0.8800: s3://")
    assert warnings == [f"mini: warning: {warning}" for warning in WARNINGS]


def a_bars_view(console: Console) -> tuple[Progress, BarsView]:
    texts = ("{task.description}", "{task.fields[phase]}", "{task.fields[numbers]}")
    bars = Progress(*(TextColumn(text) for text in texts), console=console)
    return bars, BarsView(bars, [stage.name for stage in a_plan().stages], metric="accuracy")


def test_bars_leave_the_warnings_of_a_stage_above_them():
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    _, view = a_bars_view(console)
    entry = a_status(a_plan()).stages[0].model_copy(update={"warnings": WARNINGS})

    with console.capture() as captured:
        view.ended(entry)

    assert captured.get().splitlines() == [f"mini: warning: {warning}" for warning in WARNINGS]


def test_a_terminal_has_a_bar_for_every_stage():
    plan = a_plan()
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    bars, view = a_bars_view(console)

    view.started("mini")
    view.ended(a_status(plan).stages[0])
    view.started("tiny")
    view.progress(a_line(120))

    with console.capture() as captured:
        console.print(bars.get_renderable())
    mini, tiny = captured.get().splitlines()
    assert mini.split() == ["mini", "committed", "accuracy", "0.8800"]
    assert tiny.split() == ["tiny", "train", "120/600", "loss", "0.41", "812", "examples/s", "eta", "0:00:41"]


@given(st.text() | st.sampled_from(["1e3", "0o17", "018", "y", "1:30", "5.", "1_000", "2024-01-01", "~", ".inf"]))
def test_text_that_is_printed_as_yaml_is_text_for_kubectl_too(text: str):
    document = {"value": text, text: 1}

    assert load_yaml(document_text(document, Output.YAML), source="") == document


def test_an_error_has_no_column_of_what_is_retained(monkeypatch: pytest.MonkeyPatch):
    plan = a_plan()
    error = Metric("accuracy", "error", higher_is_better=False, is_share=False)
    monkeypatch.setattr(type(plan.chain.spec.task), "metrics", (error,))

    lines = results_table(plan, a_status(plan)).splitlines()

    assert lines[0].split() == ["STAGE", "PARAMETERS", "SIZE", "ACCURACY", "TEST", "SMALLER", "EXAMPLES/S", "TIME"]
    assert lines[-1] == "accuracy: on validation, lower is better; test: accuracy on test"
