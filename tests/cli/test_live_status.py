"""The live picture and the changed lines of `status -w`, and the reading of logs over losses: over plain values."""

from __future__ import annotations

import io
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from chain_builders import a_commit, a_document, a_plan
from distillchain_api.failures import FailureClass
from distillchain_api.resource.status import ChainStatus, StageProgress, StageStatus
from distillchain_api.wire.answer import Progress
from distillchain_cli.errors import RunFailed, Silent, Unreachable
from distillchain_cli.events import Event
from distillchain_cli.logs import Mouth, Wanted, read_log, readable, show_logs
from distillchain_cli.run import build_status
from distillchain_cli.status_watch import Lines, Losses, Scene, draw, sparkline
from distillchain_cli.verdict import verdict_of
from distillchain_operator.labels import STAGE_LABEL
from distillchain_operator.status import committed_entry

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
STARTED = "2026-01-01T11:58:00Z"


def a_progress(step: int) -> StageProgress:
    return StageProgress(phase="Train", step=step, of=600, loss="0.4123", examples_per_second="812.3", eta_seconds=41)


def a_scene(stages: int = 3, committed: int = 1, lost: str = "", **entry: Any) -> Scene:
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
    return Scene(chain=chain, status=build_status(plan, entries), now=NOON, event=event, losses=losses, lost=lost)


def drawn(scene: Scene, width: int, height: int, encoding: str = "utf-8") -> list[str]:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(file=stream, width=width, height=height, force_terminal=True, color_system=None)
    console.print(draw(scene, console))
    stream.seek(0)
    return [line.rstrip() for line in stream.read().splitlines()]


def test_a_wide_terminal_shows_stages_bars_loss_eta_and_the_last_event():
    assert drawn(a_scene(progress=a_progress(300)), 100, 30) == [
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
    scene = a_scene(32, committed, lost="the API server https://127.0.0.1:6443 cannot be reached")

    lines = drawn(scene, width, height)

    assert len(lines) < height
    assert max(map(len, lines)) <= width
    assert any(line.startswith(f"stage-{min(committed + 1, 32)} ") for line in lines)


def test_what_is_left_out_is_counted():
    lines = drawn(a_scene(32, 15), 80, 24)
    shown = [line for line in lines if line.startswith("stage-")]
    more = [int(line.split()[1]) for line in lines if line.startswith("... ")]

    assert len(shown) + sum(more) == 32


def test_a_lost_connection_is_told():
    assert drawn(a_scene(lost="connection refused"), 80, 24)[-1] == "reconnecting: connection refused"


def test_a_suspended_chain_says_how_to_go_on():
    assert "to go on: distillchain resume relay" in drawn(a_scene(phase="Suspended"), 80, 24)


def test_a_terminal_without_utf_8_gets_ascii():
    lines = drawn(a_scene(progress=a_progress(300)), 80, 24, encoding="latin-1")

    assert all(line.isascii() for line in lines)
    assert any(line.startswith("loss   0.4123  @") for line in lines)


@pytest.mark.parametrize(
    "values, want",
    [
        pytest.param([], "", id="nothing yet"),
        pytest.param([0.5], "▁", id="one"),
        pytest.param([1, 1, 1], "▁▁▁", id="level"),
        pytest.param([8, 7, 6, 5, 4, 3, 2, 1], "█▇▆▅▄▃▂▁", id="falling"),
        pytest.param([2, 0, 1, 1, 0, 0, 0, 0], "█▁", id="means of what does not fit"),
    ],
)
def test_a_sparkline_has_the_shape_of_its_values(values: list[float], want: str):
    assert sparkline(values, width=2 if len(want) == 2 else 8) == want


def a_loss(step: int, loss: float) -> Progress:
    return Progress(stage="tiny", phase="Train", step=step, of=60, loss=loss)


def test_losses_of_log_and_status_are_one_line_in_order_of_steps():
    losses = Losses()
    losses.add_told(a_loss(30, 0.5))
    for step, loss in [(10, 0.9), (20, 0.7), (30, 0.5), (31, 0.4)]:
        losses.add(a_loss(step, loss))
    losses.add_told(a_loss(30, 0.5))
    for add in (losses.add, losses.add_told):
        add(Progress(stage="tiny", phase="Evaluate", step=1, of=2, loss=9.0))

    assert losses.of("tiny") == [0.9, 0.7, 0.5, 0.4]
    assert losses.of("mini") == []


def test_losses_of_an_attempt_that_crashed_are_gone_where_the_next_one_goes_on():
    losses = Losses()
    for step, loss in [(10, 0.9), (20, 0.7), (30, 9.9), (20, 0.6), (25, 0.5)]:
        losses.add_told(a_loss(step, loss))

    assert losses.of("tiny") == [0.9, 0.6, 0.5]


def lines_of(*scenes: tuple[float, Scene]) -> list[str]:
    said: list[str] = []
    now = [0.0]
    screen = Lines(said.append, clock=lambda: now[0])
    for moment, scene in scenes:
        now[0] = moment
        screen.show(scene)
    return said


def test_without_a_terminal_a_line_tells_each_change_once():
    crash = "attempt 2, 1 of 4 crashes allowed are used up: out of memory"
    said = lines_of(
        (0, a_scene(2)),
        (1, a_scene(2)),
        (2, a_scene(2, progress=a_progress(100))),
        (4, a_scene(2, progress=a_progress(130))),
        (8, a_scene(2, progress=a_progress(160))),
        (9, a_scene(2, progress=a_progress(165), message=crash)),
    )

    assert said[0] == "ml/relay: Running, 1/2 stages committed"
    assert said[1].startswith("stage stage-1: committed after 0:00:41, accuracy 0.8500: s3://")
    assert said[2:] == [
        "stage stage-2: running",
        "stage stage-2: train 100/600 loss 0.41 812 examples/s eta 0:00:41",
        "stage stage-2: train 160/600 loss 0.41 812 examples/s eta 0:00:41",
        f"stage stage-2: running: {crash}",
    ]


def test_loss_and_return_of_the_connection_are_told():
    said = lines_of((0, a_scene(2)), (1, a_scene(2, lost="reset")), (2, a_scene(2, lost="reset")), (3, a_scene(2)))

    assert said[3:] == ["reconnecting: reset", "connected again"]


def test_a_verdict_names_the_checkpoint_or_where_to_read_on():
    succeeded = verdict_of(a_scene(2, 2).status)
    failed = verdict_of(
        a_scene(2, 1, phase="Failed", failure_class=FailureClass.OUT_OF_MEMORY, message="killed").status
    )
    stalled = verdict_of(a_scene(2, 1, failure_class=FailureClass.POD_REJECTED, message="no image").status)

    assert succeeded is not None
    assert succeeded.succeeded
    assert succeeded.lines[0].startswith("succeeded: s3://models/distill/stages/")
    assert failed is not None
    assert failed.lines == ("failed: stage-2: killed", "see docs/troubleshooting.md#outofmemory")
    assert stalled is not None
    assert stalled.lines == ("stalled: stage-2: no image", "see docs/troubleshooting.md#podrejected")
    assert verdict_of(a_scene(2, 1).status) is None
    assert verdict_of(ChainStatus()) is None


class CutLog:
    """A pod's log behind a connection that breaks after so many lines, each time: a kubelet cannot be asked to."""

    def __init__(self, lines: list[str], cuts: list[int]) -> None:
        self.lines, self.cuts = lines, cuts

    def log_lines(
        self, pod: str, *, follow: bool = False, tail: int | None = None, since: str | None = None
    ) -> Iterator[str]:
        kept = [line for line in self.lines if since is None or line[:19] >= since[:19]]
        if not self.cuts:
            yield from kept
            return
        yield from kept[: self.cuts.pop(0)]
        raise (Silent if len(self.cuts) % 2 else Unreachable)("cut")

    def fetch_pod(self, name: str) -> dict[str, Any]:
        return {"metadata": {"name": name}, "status": {"phase": "Succeeded"}}


# Seconds rise; within one, stdout and stderr are stamped apart and stand in any order, and a stamp may come twice.
MOMENTS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), max_size=12).map(
    lambda drawn: sorted(drawn, key=lambda moment: moment[0])
)


@given(moments=MOMENTS, cuts=st.lists(st.integers(0, 12), max_size=4))
def test_every_line_of_a_log_is_read_once_whatever_breaks(moments: list[tuple[int, int]], cuts: list[int]):
    lines = [f"2026-01-01T12:00:0{second}.{nano:09d}Z line {nano}" for second, nano in moments]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("distillchain_cli.logs.time.sleep", lambda _: None)

        read = list(read_log(CutLog(lines, cuts), "pod", follow=True, tail=None, say=lambda _: None))  # type: ignore[arg-type]

    assert read == [line.partition(" ")[2] for line in lines]


class LostNode:
    """Two pods, of which the first one's kubelet is away: a node cannot be lost on demand."""

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
        yield "2026-01-01T12:00:00Z words"


def test_where_a_node_is_away_the_other_logs_are_shown(monkeypatch: pytest.MonkeyPatch):
    clock = [0.0]
    monkeypatch.setattr("distillchain_cli.logs.time.monotonic", lambda: clock[0])
    monkeypatch.setattr("distillchain_cli.logs.time.sleep", lambda seconds: clock.append(clock.pop() + seconds))
    shown: list[str] = []
    said: list[str] = []

    with pytest.raises(RunFailed) as caught:
        show_logs(LostNode(), "relay", Wanted(), Mouth(show=shown.append, say=said.append))  # type: ignore[arg-type]

    assert str(caught.value) == "1 of 2 logs could not be read: lost"
    assert shown == ["[tiny] words"]
    away = "the API server refused: dial tcp: no route to host"
    assert said == [
        "stage mini: pod lost",
        f"reconnecting: {away}",
        f"the log of pod lost cannot be read: {away}",
        "stage tiny: pod here",
    ]
    assert clock[0] < 60


def test_progress_is_readable_and_talk_stays_as_it_is():
    line = Progress(stage="tiny", phase="TeacherLogits", step=3, of=9, examples_per_second=470.0)

    assert readable(line.to_json()) == "teacher logits 3/9 470 examples/s"
    assert readable("loading the student") == "loading the student"
    assert readable('{"kind": "other"}') == '{"kind": "other"}'


def test_ages_of_another_clock_are_never_negative():
    later = a_scene(progress=a_progress(1))
    early = Scene(chain=later.chain, status=later.status, now=NOON - timedelta(hours=1), event=later.event)

    assert any("event  0s ago" in line for line in drawn(early, 100, 30))
