"""`status -w`: a chain as it goes on, until it ends. A live picture on a terminal, changed lines elsewhere.

The picture is a pure function of what was seen (`Scene`) and of the room there is.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

from pydantic import ValidationError
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from distillchain_api.resource.status import ChainStatus, StageStatus
from distillchain_api.wire import answer
from distillchain_api.wire.answer import parse_progress
from distillchain_cli.chains import metric_name, seconds_since, status_of
from distillchain_cli.cluster import Cluster
from distillchain_cli.columns import GAP, age, count, duration, rate
from distillchain_cli.errors import CliError, Refused, RunFailed, Unreachable
from distillchain_cli.events import Event, events_of, short_kind
from distillchain_cli.live import INTERVAL_S, PHASES, ending, sentence
from distillchain_cli.logs import parse_trainer_pod
from distillchain_cli.program import program
from distillchain_cli.status_view import headline
from distillchain_cli.verdict import Verdict, fetch_verdict
from distillchain_cli.watching import Watched
from distillchain_operator.status import metric_of

TICK_S = 1.0
STALL_PATIENCE_S = 60.0  # a registry that was away for a moment clears by itself
LOSS_TAIL_LINES = 2000  # the trainer writes a line a second: the last half hour before we came
SHORTEST_BAR, LONGEST_BAR = 6, 30
LONGEST_NAME = 24
MORE_WIDTH = len("... 30 more")
NARROW = 100  # columns; below, units that can be guessed are left out
SPARK = "▁▂▃▄▅▆▇█"
ASCII_SPARK = "_.-=+*#@"
SPARK_WIDTH = 40
MESSAGE_LINES, FOOT_LINES = 3, 2


@dataclass
class Losses:
    """Losses of training, stage by stage and step by step: from the log where it can be read, else as status tells."""

    by_stage: dict[str, dict[int, float]] = field(default_factory=dict)
    told: dict[str, int] = field(default_factory=dict)
    """The step at which status told last of each stage."""

    def add(self, line: answer.Progress) -> None:
        """Takes the loss of a line of training."""
        if line.phase != "Train" or line.loss is None:
            return
        self.by_stage.setdefault(line.stage, {})[line.step] = line.loss

    def add_told(self, line: answer.Progress) -> None:
        """The same of status, which tells steps in order: an earlier one than before is another attempt's.

        What the attempt before it did from there on is lost, and forgotten.
        """
        if line.phase != "Train":
            return
        if line.step < self.told.get(line.stage, 0):
            kept = self.by_stage.get(line.stage, {}).copy()  # at once: another thread adds to it
            self.by_stage[line.stage] = {step: loss for step, loss in kept.items() if step < line.step}
        self.told[line.stage] = line.step
        self.add(line)

    def of(self, stage: str) -> list[float]:
        """In order of steps."""
        return [loss for _, loss in sorted(self.by_stage.get(stage, {}).items())]


@dataclass(frozen=True)
class Scene:
    """What is shown at a moment."""

    chain: dict[str, Any]
    status: ChainStatus
    now: datetime
    event: Event | None = None
    losses: Sequence[float] = ()
    """Of the running stage."""
    lost: str = ""


class Screen(Protocol):
    """Who shows a chain."""

    def show(self, scene: Scene) -> None:
        """The chain, or the moment, has changed."""


def watch_status(
    cluster: Cluster, name: str, open_screen: Callable[[], Any], *, clock: Callable[[], datetime] | None = None
) -> Verdict:
    """Shows a chain until it succeeded, failed, or was stalled for STALL_PATIENCE_S.

    Raises: RunFailed when it is deleted, or the API server is away for too long.
    """
    now = clock or (lambda: datetime.now(UTC))
    cluster.fetch_chain(name)  # a wrong name is told at once
    watched = _watch(cluster, name)
    losses = Losses()
    asked: set[str] = set()
    events: list[Event] = []
    stalled_since: float | None = None
    with open_screen() as screen:
        while True:
            news = watched.wait(TICK_S)
            if not watched["chain"]:
                raise RunFailed(f"DistillationChain {name} was deleted")
            chain = watched["chain"][0]
            if news and "events" in watched:
                events = events_of(chain, watched["events"])
            scene = _scene(chain, events, losses, now(), lost=watched.lost)
            if (stage := _training(scene.status)) and stage.job and stage.job not in asked:
                asked.add(stage.job)
                threading.Thread(target=_read_losses, args=(cluster, name, stage.name, losses), daemon=True).start()
            screen.show(scene)
            with suppress(Unreachable):  # the watches say so, and go on once it answers
                verdict = fetch_verdict(cluster, chain)
                if verdict is None or (watched.lost and not verdict.final):  # who is away cannot say that it cleared
                    stalled_since = None
                    continue
                stalled_since = stalled_since or time.monotonic()
                if verdict.final or time.monotonic() - stalled_since >= STALL_PATIENCE_S:
                    return verdict


def _watch(cluster: Cluster, name: str) -> Watched:
    chain = cluster.the_chain(name)
    try:
        return Watched(cluster, {"chain": chain, "events": cluster.events()})
    except Refused:  # who may read chains need not be allowed to read Events
        return Watched(cluster, {"chain": chain})


def _scene(chain: dict[str, Any], events: Sequence[Event], losses: Losses, now: datetime, *, lost: str) -> Scene:
    status = status_of(chain)
    training = _training(status)
    if training and (line := progress_of(training)):
        losses.add_told(line)
    return Scene(
        chain=chain,
        status=status,
        now=now,
        event=events[-1] if events else None,
        losses=losses.of(training.name) if training else (),
        lost=lost,
    )


def _training(status: ChainStatus) -> StageStatus | None:
    return next((entry for entry in status.stages if entry.phase == "Running" and entry.progress), None)


def progress_of(entry: StageStatus) -> answer.Progress | None:
    """A stage's progress as its trainer wrote it; None when it has none, or one of a later release."""
    if entry.progress is None:
        return None
    seen = entry.progress
    try:
        return answer.Progress.model_validate(
            {
                "stage": entry.name,
                "phase": seen.phase,
                "step": seen.step,
                "of": seen.of,
                "loss": seen.loss and float(seen.loss),
                "examples_per_second": seen.examples_per_second and float(seen.examples_per_second),
                "eta_s": seen.eta_seconds,
            }
        )
    except ValidationError:
        return None


def _read_losses(cluster: Cluster, chain: str, stage: str, losses: Losses) -> None:
    """What was lost before we came to watch; where logs cannot be read, the line begins now."""
    try:
        pods = [parse_trainer_pod(document) for document in cluster.list(cluster.pods_of(chain))[0]]
        running = [pod for pod in pods if pod.stage == stage and pod.has_log and not pod.is_over]
        for line in cluster.log_lines(running[-1].name, tail=LOSS_TAIL_LINES) if running else ():
            if progress := parse_progress(line.partition(" ")[2]):
                losses.add(progress)
    except CliError:
        return


class Picture:
    """A live picture on a terminal; the last one stays."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, auto_refresh=False, vertical_overflow="crop")

    def __enter__(self) -> Picture:
        self._live.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._live.__exit__(*error)

    def show(self, scene: Scene) -> None:
        """See Screen."""
        self._live.update(draw(scene, self._console), refresh=True)


def draw(scene: Scene, console: Console) -> RenderableType:
    """The picture, within the console's width and height."""
    width, height = console.size
    status = scene.status
    message = Text(status.message or "", overflow="ellipsis")
    head = [Text(headline(scene.chain, status), style="bold", no_wrap=True, overflow="ellipsis")]
    head += message.wrap(console, width, overflow="fold")[:MESSAGE_LINES] if status.message else []
    foot = [part for line in _foot(scene, console) for part in line.wrap(console, width)[:FOOT_LINES]]
    room = height - len(head) - len(foot) - 3  # two blank lines and the cursor's
    return Group(*head, Text(""), _stages(scene, width, max(room, 3)), Text(""), *foot)


@dataclass(frozen=True)
class _Row:
    """A stage in a line."""

    name: str
    phase: str
    style: str
    numbers: str
    done: int
    of: int


def _stages(scene: Scene, width: int, room: int) -> Table:
    """A line a stage; where there is no room for all, those around the one that runs, and how many there are beside."""
    entries, metric = scene.status.stages, metric_name(scene.chain)
    current = next((i for i, entry in enumerate(entries) if entry.phase != "Committed"), len(entries))
    first, last = _window(len(entries), current, room)
    rows = [_row(entry, metric, scene.now, narrow=width < NARROW) for entry in entries[first:last]]
    name_width = min(
        max(_widest(row.name for row in rows), MORE_WIDTH if len(rows) < len(entries) else 0), LONGEST_NAME
    )
    taken = name_width + _widest(row.phase for row in rows) + _widest(row.numbers for row in rows) + 3 * len(GAP)
    bar_width = max(SHORTEST_BAR, min(LONGEST_BAR, width - taken))
    table = Table.grid(padding=(0, len(GAP)))
    table.add_column(no_wrap=True, overflow="ellipsis", width=name_width)
    table.add_column(no_wrap=True, width=bar_width)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, overflow="ellipsis")
    if first:
        table.add_row(f"... {first} more", "", "committed", "")
    for row in rows:
        bar = ProgressBar(total=row.of, completed=row.done, width=bar_width)
        table.add_row(Text(row.name), bar, Text(row.phase, style=row.style), Text(row.numbers))
    if last < len(entries):
        table.add_row(f"... {len(entries) - last} more", "", "pending", "")
    return table


def _widest(texts: Iterable[str]) -> int:
    return max(map(len, texts), default=0)


def _window(count_: int, current: int, room: int) -> tuple[int, int]:
    """Which of `count_` stages are shown in `room` lines, of which a line each goes to what is left out."""
    if count_ <= room:
        return 0, count_
    shown = max(1, room - 2)
    first = min(max(0, current - shown // 2), count_ - shown)
    return first, first + shown


def _row(entry: StageStatus, metric: str, now: datetime, *, narrow: bool) -> _Row:
    line = progress_of(entry) if entry.phase == "Running" else None
    done, of = (1, 1) if entry.phase == "Committed" else (line.step, line.of) if line and line.of else (0, 1)
    return _Row(
        name=entry.name,
        phase=PHASES[line.phase] if line else "reused" if entry.reused else entry.phase.lower(),
        style={"Committed": "green", "Failed": "red", "Running": "cyan"}.get(entry.phase, ""),
        numbers=_numbers(entry, line, metric, now, narrow=narrow),
        done=done,
        of=of,
    )


def _numbers(entry: StageStatus, line: answer.Progress | None, metric: str, now: datetime, *, narrow: bool) -> str:
    if entry.phase == "Committed" and entry.model:
        size = count(entry.model.parameters) + ("" if narrow else " parameters")
        took = duration(entry.elapsed_seconds) if entry.elapsed_seconds else ""
        return "  ".join(filter(None, (f"{metric} {metric_of(entry.model, metric)}", size, took)))
    if entry.phase == "Failed":
        return str(entry.failure_class or "")
    if entry.phase != "Running":
        return ""
    since = seconds_since(entry.started_at, now)
    parts = (
        f"{line.step}/{line.of}" if line and line.of else "",
        f"eta {duration(line.eta_s)}" if line and line.eta_s is not None else "",
        f"for {duration(since)}" if since is not None else "",
        f"attempt {entry.attempt}" if entry.attempt > 1 else "",
    )
    return "  ".join(filter(None, parts))


def _foot(scene: Scene, console: Console) -> list[Text]:
    lines = []
    training = _training(scene.status)
    line = progress_of(training) if training else None
    if line and line.loss is not None:
        speed = f"  {rate(line.examples_per_second)} examples/s" if line.examples_per_second else ""
        lines.append(Text(f"loss   {line.loss:.4f}  {sparkline(scene.losses, ascii_only=_is_ascii(console))}{speed}"))
    elif line and line.examples_per_second:
        lines.append(Text(f"speed  {rate(line.examples_per_second)} examples/s"))
    if scene.event:
        event = scene.event
        ago = age(seconds_since(event.last_at, scene.now))
        text = f"event  {ago} ago, {short_kind(event.kind)}: {event.reason}: {event.note}"
        lines.append(Text(text, style="yellow" if event.type == "Warning" else ""))
    if scene.status.phase == "Suspended":
        lines.append(Text(f"to go on: {program()} resume {scene.chain['metadata']['name']}"))
    if scene.lost:
        lines.append(Text(f"reconnecting: {scene.lost}", style="bold yellow"))
    return lines


def sparkline(values: Sequence[float], *, ascii_only: bool = False, width: int = SPARK_WIDTH) -> str:
    """Values as a line of bars, at most `width` of them: each the mean of its share of the values."""
    if not values:
        return ""
    columns = min(width, len(values))
    edges = [index * len(values) // columns for index in range(columns + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    low, high = min(means), max(means)
    ramp = ASCII_SPARK if ascii_only else SPARK
    span = high - low
    return "".join(ramp[round((value - low) / span * (len(ramp) - 1)) if span else 0] for value in means)


def _is_ascii(console: Console) -> bool:
    return not console.encoding.startswith("utf")


class Lines:
    """A line for each change, where there is no terminal; progress at most every few seconds."""

    def __init__(self, show: Callable[[str], None], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._show, self._clock = show, clock
        self._said: dict[str, str] = {}
        self._progress_at: dict[tuple[str, str], float] = {}

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def show(self, scene: Scene) -> None:
        """See Screen."""
        status, metric = scene.status, metric_name(scene.chain)
        self._say(
            "lost", f"reconnecting: {scene.lost}" if scene.lost else "connected again" if "lost" in self._said else ""
        )
        self._say("chain", headline(scene.chain, status))
        for entry in status.stages:
            line = progress_of(entry) if entry.phase == "Running" else None
            if line is None or entry.message:  # such as a crash that is tried again
                self._say(entry.name, f"stage {entry.name}: {stage_sentence(entry, metric)}")
            if line is not None and self._is_due(line):
                self._say(f"{entry.name} progress", f"stage {entry.name}: {sentence(line)}")

    def _is_due(self, line: answer.Progress) -> bool:
        key, now = (line.stage, line.phase), self._clock()
        if key in self._progress_at and now - self._progress_at[key] < INTERVAL_S:
            return False
        self._progress_at[key] = now
        return True

    def _say(self, key: str, text: str) -> None:
        if text and self._said.get(key) != text:
            self._said[key] = text
            self._show(text)


def stage_sentence(entry: StageStatus, metric: str) -> str:
    """How a stage stands, when it does not train at the moment."""
    if entry.phase == "Committed":
        return ending(entry, metric)
    if entry.phase == "Failed":
        return f"failed: {entry.failure_class}: {entry.message}"
    return ": ".join(filter(None, (entry.phase.lower(), entry.message)))


class Documents:
    """The status at each change, as a document."""

    def __init__(self, show: Callable[[dict[str, Any]], None]) -> None:
        self._show = show
        self._shown: dict[str, Any] | None = None

    def __enter__(self) -> Documents:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def show(self, scene: Scene) -> None:
        """See Screen."""
        document = scene.chain.get("status") or {}
        if document != self._shown:
            self._shown = document
            self._show(document)
