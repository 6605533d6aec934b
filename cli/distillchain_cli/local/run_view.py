"""The view of a run: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TextIO

from distillchain_cli.local.live import PlainView, View


@contextlib.contextmanager
def open_view(stream: TextIO, stages: Sequence[str], *, metric: str) -> Iterator[View]:
    """Bars if `stream` is a terminal, else plain lines."""
    if not stream.isatty():
        yield PlainView(stream, metric=metric)
        return
    from distillchain_cli.local.bars import open_bars  # rich takes a tenth of a second to import

    with open_bars(stream, stages, metric=metric) as view:
        yield view
