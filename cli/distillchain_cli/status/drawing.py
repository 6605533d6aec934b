"""The live picture of `status -w`: a pure function of a snapshot and the size of the terminal."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from rich.console import Console, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from distillchain_api.resource.status import StageStatus
from distillchain_api.wire import answer
from distillchain_cli.api_server.chains import metric_name, seconds_since
from distillchain_cli.output.columns import GAP, age, count, duration, rate
from distillchain_cli.output.phrases import PHASES, warning_lines
from distillchain_cli.program import program_name
from distillchain_cli.status.events import short_kind
from distillchain_cli.status.snapshot import Snapshot, progress_of, training_stage
from distillchain_cli.status.view import headline
from distillchain_operator.status.chain_status import metric_of

SHORTEST_BAR, LONGEST_BAR = 6, 30
LONGEST_NAME = 24
MORE_WIDTH = len("... 30 more")
NARROW = 100  # columns; a narrower terminal gets no units that the reader can guess
SPARK = "▁▂▃▄▅▆▇█"
ASCII_SPARK = "_.-=+*#@"
SPARK_WIDTH = 40
MESSAGE_LINES, FOOTER_LINES = 3, 2
SHOWN_WARNINGS = 2


def draw(snapshot: Snapshot, console: Console) -> RenderableType:
    """The picture, within the console's width and height."""
    width, height = console.size
    status = snapshot.status
    message = Text(status.message or "", overflow="ellipsis")
    header = [Text(headline(snapshot.chain, status), style="bold", no_wrap=True, overflow="ellipsis")]
    header += message.wrap(console, width, overflow="fold")[:MESSAGE_LINES] if status.message else []
    # Header and footer are wrapped first, because the stages get the lines that are left.
    footer = [part for line in _footer(snapshot, console) for part in line.wrap(console, width)[:FOOTER_LINES]]
    free_lines = height - len(header) - len(footer) - 3  # two empty lines and the line of the cursor
    return Group(*header, Text(""), _stages(snapshot, width, max(free_lines, 3)), Text(""), *footer)


@dataclass(frozen=True)
class _Row:
    """A stage as one line."""

    name: str
    phase: str
    style: str
    numbers: str
    done: int
    of: int


def _stages(snapshot: Snapshot, width: int, height: int) -> Table:
    """A line for each stage. If they do not fit, those around the current one, and how many are left out."""
    entries, metric = snapshot.status.entries, metric_name(snapshot.chain)
    # The stages around the first one that is not committed matter most.
    current = next((i for i, entry in enumerate(entries) if entry.phase != "Committed"), len(entries))
    first, last = _window(len(entries), current, height)
    rows = [_row(entry, metric, snapshot.now, narrow=width < NARROW) for entry in entries[first:last]]
    name_width = min(
        max(_widest(row.name for row in rows), MORE_WIDTH if len(rows) < len(entries) else 0), LONGEST_NAME
    )
    used = name_width + _widest(row.phase for row in rows) + _widest(row.numbers for row in rows) + 3 * len(GAP)
    # The bar takes what the texts leave; texts are never shortened for a longer bar.
    bar_width = max(SHORTEST_BAR, min(LONGEST_BAR, width - used))
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


def _window(total: int, current: int, height: int) -> tuple[int, int]:
    """Which of `total` stages to show in `height` lines, two of which say how many are left out before and after."""
    if total <= height:
        return 0, total
    shown = max(1, height - 2)  # two lines go to the counts of stages left out
    first = min(max(0, current - shown // 2), total - shown)
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
        elapsed = duration(entry.elapsed_seconds) if entry.elapsed_seconds else ""
        return "  ".join(filter(None, (f"{metric} {metric_of(entry.model, metric)}", size, elapsed)))
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


def _footer(snapshot: Snapshot, console: Console) -> list[Text]:
    lines = [*_training_lines(snapshot, console), *_warnings(snapshot)]
    if snapshot.event:
        event = snapshot.event
        ago = age(seconds_since(event.last_at, snapshot.now))
        text = f"event  {ago} ago, {short_kind(event.kind)}: {event.reason}: {event.note}"
        lines.append(Text(text, style="yellow" if event.type == "Warning" else ""))
    if snapshot.status.phase == "Suspended":
        lines.append(Text(f"to continue: {program_name()} resume {snapshot.chain['metadata']['name']}"))
    if snapshot.disconnected:
        lines.append(Text(f"reconnecting: {snapshot.disconnected}", style="bold yellow"))
    return lines


def _training_lines(snapshot: Snapshot, console: Console) -> list[Text]:
    training = training_stage(snapshot.status)
    line = progress_of(training) if training else None
    if line is None:
        return []
    speed = f"{rate(line.examples_per_second)} examples/s" if line.examples_per_second else ""
    if line.loss is None:
        return [Text(f"speed  {speed}")] if speed else []
    curve = sparkline(snapshot.losses, ascii_only=_is_ascii(console))
    return [Text(f"loss   {line.loss:.4f}  {curve}" + (f"  {speed}" if speed else ""))]


def _warnings(snapshot: Snapshot) -> list[Text]:
    """The latest warnings of the trainers, and where to read the others."""
    warnings = [line for entry in snapshot.status.entries for line in warning_lines(entry)]
    lines = [Text(line, style="yellow") for line in warnings[-SHOWN_WARNINGS:]]
    if hidden := len(warnings) - len(lines):
        name = snapshot.chain["metadata"]["name"]
        lines.append(Text(f"{hidden} more: {program_name()} status {name}", style="yellow"))
    return lines


def sparkline(values: Sequence[float], *, ascii_only: bool = False, width: int = SPARK_WIDTH) -> str:
    """Values as a line of at most `width` bars. If there are more values, each bar is a mean of several."""
    if not values:
        return ""
    columns = min(width, len(values))
    # Edges by integer arithmetic: every value falls into exactly one bar, whatever the two counts are.
    edges = [index * len(values) // columns for index in range(columns + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    low, high = min(means), max(means)
    ramp = ASCII_SPARK if ascii_only else SPARK
    span = high - low
    return "".join(ramp[round((value - low) / span * (len(ramp) - 1)) if span else 0] for value in means)


def _is_ascii(console: Console) -> bool:
    return not console.encoding.startswith("utf")
