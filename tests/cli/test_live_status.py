"""The live picture and the changed lines of `status -w`, and reading a log across lost connections: on plain values."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from chain_builders import a_commit, a_document, a_plan
from distillchain_api.failures import FailureClass
from distillchain_api.resource.status import ChainStatus, StageProgress, StageStatus
from distillchain_api.retry_request import new_retry
from distillchain_api.wire.answer import Progress
from distillchain_cli.errors import NoData, RunFailed, Unreachable
from distillchain_cli.local.run import build_status
from distillchain_cli.status.drawing import draw, sparkline
from distillchain_cli.status.events import Event
from distillchain_cli.status.log_reader import read_log
from distillchain_cli.status.logs import LogOutput, LogSelection, readable, show_logs
from distillchain_cli.status.outcome import current_outcome, outcome_of
from distillchain_cli.status.screens import LineScreen
from distillchain_cli.status.snapshot import Losses, Snapshot
from distillchain_operator.jobs.labels import STAGE_LABEL
from distillchain_operator.status.chain_status import invalid_status
from distillchain_operator.status.committed import committed_entry

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
STARTED = "2026-01-01T11:58:00Z"


def a_progress(step: int) -> StageProgress:
    return StageProgress(phase="Train", step=step, of=600, loss="0.4123", examples_per_second="812.3", eta_seconds=41)


def a_snapshot(stages: int = 3, committed: int = 1, disconnected: str = "", **entry: Any) -> Snapshot:
    names = [f"stage-{number}" for number in range(1, stages + 1)]
    plan = a_plan(stages=names)
    entries = [committed_entry(stage, a_commit(stage), attempt=1) for stage in plan.stages[:committed]]
    if committed < stages:
        running = {"phase": "Running", "job": "a-job", "attempt": 1, "started_at": STARTED, **entry}
        entries.append(StageStatus(name=names[committed], digest=plan.stages[committed].digest, **running))
    chain = a_document(stages=names) | {"metadata": {"name": "relay", "namespace": "ml", "generation": 1}}
    event = Event(
        first_at=STARTED,
        last_at="2026-01-01T11:59:30Z",
        type="Warning",
        reason="FailedScheduling",
        kind="Pod",
        name="p",
        uid="u",
        note="0/3 nodes are available: 3 Insufficient nvidia.com/gpu. preemption: not helpful for scheduling",
    )
    losses = [1.0, 0.8, 0.6, 0.5, 0.45, 0.41] if entry.get("progress") else []
    return Snapshot(
        chain=chain,
        status=build_status(plan, entries),
        now=NOON,
        event=event,
        losses=losses,
        disconnected=disconnected,
    )


def drawn(snapshot: Snapshot, width: int, height: int, encoding: str = "utf-8") -> list[str]:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(file=stream, width=width, height=height, force_terminal=True, color_system=None)
    console.print(draw(snapshot, console))
    stream.seek(0)
    return [line.rstrip() for line in stream.read().splitlines()]


def test_a_wide_terminal_shows_stages_bars_loss_eta_and_the_last_event():
    assert drawn(a_snapshot(progress=a_progress(300)), 100, 30) == [
        "ml/relay: Running, 1/3 stages committed",
        "running stage-2",
        "",
        "stage-1  ━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━  committed  accuracy 0.8500  1.0M parameters  0:00:41",
        "stage-2  ━━━━━━━━━━━━━━━                 train      300/600  eta 0:00:41  for 0:02:00",
        "stage-3                                  pending",
        "",
        "loss   0.4123  █▆▃▂▁▁  812 examples/s",
        "event  30s ago, pod: FailedScheduling: 0/3 nodes are available: 3 Insufficient nvidia.com/gpu.",
        "preemption: not helpful for scheduling",
    ]


@pytest.mark.parametrize("width, height", [(80, 24), (100, 30), (60, 16)])
@pytest.mark.parametrize("committed", [0, 15, 31, 32])
def test_the_longest_chain_fits_any_terminal(width: int, height: int, committed: int):
    snapshot = a_snapshot(32, committed, disconnected="the API server https://127.0.0.1:6443 cannot be reached")

    lines = drawn(snapshot, width, height)

    assert len(lines) < height
    assert max(map(len, lines)) <= width
    assert any(line.startswith(f"stage-{min(committed + 1, 32)} ") for line in lines)


def test_stages_that_do_not_fit_are_counted():
    lines = drawn(a_snapshot(32, 15), 80, 24)
    shown = [line for line in lines if line.startswith("stage-")]
    more = [int(line.split()[1]) for line in lines if line.startswith("... ")]

    assert len(shown) + sum(more) == 32


def test_a_lost_connection_is_shown():
    assert drawn(a_snapshot(disconnected="connection refused"), 80, 24)[-1] == "reconnecting: connection refused"


def with_warnings(snapshot: Snapshot, *warnings: str) -> Snapshot:
    first, *others = snapshot.status.stages
    entry = first.model_copy(update={"warnings": list(warnings)})
    return replace(snapshot, status=snapshot.status.model_copy(update={"stages": [entry, *others]}))


def test_the_latest_warnings_of_the_trainers_are_shown_and_the_others_counted():
    lines = drawn(with_warnings(a_snapshot(), "one", "two", "three"), 80, 24)

    start = lines.index("stage-1: warning: two")
    assert lines[start : start + 3] == [
        "stage-1: warning: two",
        "stage-1: warning: three",
        "1 more: distillchain status relay",
    ]


def test_a_suspended_chain_shows_how_to_continue():
    assert "to continue: distillchain resume relay" in drawn(a_snapshot(phase="Suspended"), 80, 24)


def test_a_terminal_without_utf_8_gets_ascii():
    lines = drawn(a_snapshot(progress=a_progress(300)), 80, 24, encoding="latin-1")

    assert all(line.isascii() for line in lines)
    assert any(line.startswith("loss   0.4123  @") for line in lines)


@pytest.mark.parametrize(
    "values, want",
    [
        pytest.param([], "", id="nothing yet"),
        pytest.param([0.5], "▁", id="one"),
        pytest.param([1, 1, 1], "▁▁▁", id="all equal"),
        pytest.param([8, 7, 6, 5, 4, 3, 2, 1], "█▇▆▅▄▃▂▁", id="falling"),
        pytest.param([2, 0, 1, 1, 0, 0, 0, 0], "█▁", id="means of values that do not fit"),
    ],
)
def test_a_sparkline_has_the_shape_of_its_values(values: list[float], want: str):
    assert sparkline(values, width=2 if len(want) == 2 else 8) == want


def a_loss(step: int, loss: float) -> Progress:
    return Progress(stage="tiny", phase="Train", step=step, of=60, loss=loss)


def test_losses_of_log_and_status_are_merged_in_order_of_steps():
    losses = Losses()
    losses.add_from_status(a_loss(30, 0.5))
    for step, loss in [(10, 0.9), (20, 0.7), (30, 0.5), (31, 0.4)]:
        losses.add(a_loss(step, loss))
    losses.add_from_status(a_loss(30, 0.5))
    for add in (losses.add, losses.add_from_status):
        add(Progress(stage="tiny", phase="Evaluate", step=1, of=2, loss=9.0))

    assert losses.of("tiny") == [0.9, 0.7, 0.5, 0.4]
    assert losses.of("mini") == []


def test_losses_of_a_crashed_attempt_are_dropped_from_the_step_where_the_next_one_continues():
    losses = Losses()
    for step, loss in [(10, 0.9), (20, 0.7), (30, 9.9), (20, 0.6), (25, 0.5)]:
        losses.add_from_status(a_loss(step, loss))

    assert losses.of("tiny") == [0.9, 0.6, 0.5]


def lines_of(*snapshots: tuple[float, Snapshot]) -> list[str]:
    lines: list[str] = []
    now = [0.0]
    screen = LineScreen(lines.append, clock=lambda: now[0])
    for moment, snapshot in snapshots:
        now[0] = moment
        screen.show(snapshot)
    return lines


def test_without_a_terminal_each_change_is_printed_once():
    crash = "attempt 2, 1 of 4 crashes allowed are used up: out of memory"
    lines = lines_of(
        (0, a_snapshot(2)),
        (1, a_snapshot(2)),
        (2, a_snapshot(2, progress=a_progress(100))),
        (4, a_snapshot(2, progress=a_progress(130))),
        (8, a_snapshot(2, progress=a_progress(160))),
        (9, a_snapshot(2, progress=a_progress(165), message=crash)),
    )

    assert lines[0] == "ml/relay: Running, 1/2 stages committed"
    assert lines[1].startswith("stage stage-1: committed after 0:00:41, accuracy 0.8500: s3://")
    assert lines[2:] == [
        "stage stage-2: running",
        "stage stage-2: train 100/600 loss 0.41 812 examples/s eta 0:00:41",
        "stage stage-2: train 160/600 loss 0.41 812 examples/s eta 0:00:41",
        f"stage stage-2: running: {crash}",
    ]


def test_without_a_terminal_each_warning_is_printed_once():
    snapshot = with_warnings(a_snapshot(2), "one", "two")

    lines = lines_of((0, snapshot), (1, snapshot))

    assert [line for line in lines if "warning" in line] == ["stage-1: warning: one", "stage-1: warning: two"]


def test_a_lost_and_restored_connection_is_printed():
    lines = lines_of(
        (0, a_snapshot(2)),
        (1, a_snapshot(2, disconnected="reset")),
        (2, a_snapshot(2, disconnected="reset")),
        (3, a_snapshot(2)),
    )

    assert lines[3:] == ["reconnecting: reset", "connected again"]


def test_an_outcome_names_the_checkpoint_or_the_page_about_the_failure():
    succeeded = outcome_of(a_snapshot(2, 2).status)
    failed = outcome_of(
        a_snapshot(2, 1, phase="Failed", failure_class=FailureClass.OUT_OF_MEMORY, message="killed").status
    )
    stalled = outcome_of(a_snapshot(2, 1, failure_class=FailureClass.POD_REJECTED, message="no image").status)

    assert succeeded is not None
    assert succeeded.succeeded
    assert succeeded.lines[0].startswith("succeeded: s3://models/distill/stages/")
    assert failed is not None
    assert failed.lines == ("failed: stage-2: killed", "see docs/troubleshooting.md#outofmemory")
    assert stalled is not None
    assert stalled.lines == ("stalled: stage-2: no image", "see docs/troubleshooting.md#podrejected")
    assert outcome_of(a_snapshot(2, 1).status) is None
    assert outcome_of(ChainStatus()) is None


def test_a_retry_that_waits_for_a_correction_of_the_spec_does_not_keep_a_wait_open():
    failed = a_snapshot(2, 1, phase="Failed", failure_class=FailureClass.OUT_OF_MEMORY, message="killed").status
    invalid = invalid_status(["spec.stages: got 1"], generation=2, previous=failed, now=NOON)
    retried = {"metadata": {"generation": 2, "annotations": new_retry(["stage-2"], token="1")}}

    outcome = current_outcome(retried | {"status": invalid.to_document()})
    assert outcome is not None
    assert outcome.lines[0] == "failed: spec.stages: got 1"
    valid = failed.model_copy(update={"observed_generation": 2})
    assert current_outcome(retried | {"status": valid.to_document()}) is None


class CutLog:
    """A pod's log over a connection that breaks after given numbers of lines, which a real kubelet cannot be made to do."""

    def __init__(self, lines: list[str], cuts: list[int]) -> None:
        self.lines, self.cuts = lines, cuts

    def log_lines(
        self,
        pod: str,
        *,
        follow: bool = False,
        tail: int | None = None,
        newest_s: int | None = None,
        since: str | None = None,
    ) -> Iterator[str]:
        kept = [line for line in self.lines if since is None or line[:19] >= since[:19]]
        if not self.cuts:
            yield from kept
            return
        yield from kept[: self.cuts.pop(0)]
        raise (NoData if len(self.cuts) % 2 else Unreachable)("cut")

    def fetch_pod(self, name: str) -> dict[str, Any]:
        return {"metadata": {"name": name}, "status": {"phase": "Succeeded"}}


# Seconds rise. Within a second, lines of stdout and stderr come in any order, and two lines may have one timestamp.
MOMENTS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), max_size=12).map(
    lambda drawn: sorted(drawn, key=lambda moment: moment[0])
)


@given(moments=MOMENTS, cuts=st.lists(st.integers(0, 12), max_size=4))
def test_every_line_of_a_log_is_read_once_wherever_the_connection_breaks(
    moments: list[tuple[int, int]], cuts: list[int]
):
    lines = [f"2026-01-01T12:00:0{second}.{nano:09d}Z line {nano}" for second, nano in moments]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("distillchain_cli.status.log_reader.time.sleep", lambda _: None)

        cluster: Any = CutLog(lines, cuts)
        read = list(read_log(cluster, "pod", follow=True, tail=None, note=lambda _: None))

    assert read == [line.partition(" ")[2] for line in lines]


class LostNode:
    """Two pods, one of them on a node that does not answer."""

    def fetch_chain(self, name: str) -> dict[str, Any]:
        return a_document(name)

    def pods_of(self, chain: str) -> None:
        return None

    def list(self, collection: None) -> tuple[list[dict[str, Any]], str]:
        running = {"containerStatuses": [{"name": "trainer", "state": {"running": {}}}]}
        stages = {"mini": "lost", "tiny": "here"}
        pods = [
            {"metadata": {"name": name, "labels": {STAGE_LABEL: stage}}, "status": running}
            for stage, name in stages.items()
        ]
        return pods, "1"

    def log_lines(self, pod: str, **_: Any) -> Iterator[str]:
        if pod == "lost":
            raise Unreachable("the API server refused: dial tcp: no route to host")
        yield "2026-01-01T12:00:00Z text"


def test_logs_on_other_nodes_are_shown_when_one_node_is_away(monkeypatch: pytest.MonkeyPatch):
    clock = [0.0]
    monkeypatch.setattr("distillchain_cli.status.log_reader.time.monotonic", lambda: clock[0])
    monkeypatch.setattr(
        "distillchain_cli.status.log_reader.time.sleep", lambda seconds: clock.append(clock.pop() + seconds)
    )
    lines: list[str] = []
    notes: list[str] = []

    cluster: Any = LostNode()

    with pytest.raises(RunFailed) as caught:
        show_logs(cluster, "relay", LogSelection(), LogOutput(line=lines.append, note=notes.append))

    assert str(caught.value) == "1 of 2 logs could not be read: lost"
    assert lines == ["[tiny] text"]
    away = "the API server refused: dial tcp: no route to host"
    assert notes == [
        "stage mini: pod lost",
        f"reconnecting: {away}",
        f"the log of pod lost cannot be read: {away}",
        "stage tiny: pod here",
    ]
    assert clock[0] < 60


def test_progress_lines_become_text_and_other_lines_stay_unchanged():
    line = Progress(stage="tiny", phase="TeacherLogits", step=3, of=9, examples_per_second=470.0)

    assert readable(line.to_json()) == "teacher logits 3/9 470 examples/s"
    assert readable("loading the student") == "loading the student"
    assert readable('{"kind": "other"}') == '{"kind": "other"}'


def test_an_age_is_never_negative_when_another_clock_is_ahead():
    later = a_snapshot(progress=a_progress(1))
    early = Snapshot(chain=later.chain, status=later.status, now=NOON - timedelta(hours=1), event=later.event)

    assert any("event  0s ago" in line for line in drawn(early, 100, 30))
