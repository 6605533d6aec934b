"""The progress bars of a run on a terminal, drawn with rich."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from distillchain_api.resource.status import StageStatus
from distillchain_api.wire import answer
from distillchain_cli.output.phrases import PHASES, numbers, warning_lines
from distillchain_operator.status.chain_status import metric_of


@contextlib.contextmanager
def open_bars(stream: TextIO, stages: Sequence[str], *, metric: str) -> Iterator[BarsView]:
    """Draws on `stream` while the block runs."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[phase]}", markup=False),
        TextColumn("{task.fields[numbers]}", markup=False),
    )
    with Progress(*columns, console=Console(file=stream), refresh_per_second=5) as bars:
        yield BarsView(bars, stages, metric=metric)


class BarsView:
    """Draws a bar for every stage with rich."""

    def __init__(self, bars: Progress, stages: Sequence[str], *, metric: str) -> None:
        self._bars, self._metric = bars, metric
        self._tasks: dict[str, TaskID] = {
            stage: bars.add_task(stage, total=1, start=False, phase="waiting", numbers="") for stage in stages
        }

    def started(self, stage: str) -> None:
        """See View."""
        self._bars.start_task(self._tasks[stage])
        self._bars.update(self._tasks[stage], total=None, phase="starting", numbers="")

    def progress(self, line: answer.Progress) -> None:
        """See View."""
        self._bars.update(
            self._tasks[line.stage],
            total=line.of or None,  # None: rich draws a moving bar while the number of steps is unknown
            completed=line.step,
            phase=PHASES[line.phase],
            numbers=" ".join(filter(None, (f"{line.step}/{line.of}" if line.of else "", numbers(line)))),
        )

    def ended(self, entry: StageStatus) -> None:
        """See View."""
        is_committed = entry.phase == "Committed"
        value = f"{self._metric} {metric_of(entry.model, self._metric)}" if is_committed else entry.failure_class or ""
        value = entry.verdict.outcome if entry.verdict else value
        phase = "reused" if entry.reused else entry.phase.lower()
        self._bars.update(
            self._tasks[entry.name], total=1, completed=1 if is_committed else None, phase=phase, numbers=str(value)
        )
        for line in warning_lines(entry):
            self.note(line)

    def note(self, text: str) -> None:
        """See View."""
        # Through the console of the bars, which moves them down. Brackets in paths are not markup.
        self._bars.console.print(text, markup=False, highlight=False, soft_wrap=True)
