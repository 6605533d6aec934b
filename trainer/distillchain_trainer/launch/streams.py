"""stdout for progress, stderr for everything else, one line per log record."""

from __future__ import annotations

import logging
import os
import sys
import time
from typing import TextIO

from distillchain_store.redaction import without_secrets


def set_up_streams(rank: int | None = None) -> TextIO:
    """Returns the stream for progress lines. Whatever a library prints to stdout goes to stderr, also from C.

    Args:
        rank: is added to every log line; None: this process is the only one.
    """
    # What Python still holds back belongs to the old stdout, before descriptor 1 is changed.
    sys.stdout.flush()
    # File descriptors and not sys.stdout, which a library in C does not know.
    progress = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Fields(rank))
    # force: basicConfig does nothing if a library has already added a handler.
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("distillchain_trainer").setLevel(logging.INFO)
    logging.getLogger("distillchain_store").setLevel(logging.INFO)
    if rank:
        # All ranks do the same and find the same; what rank 0 logs is enough.
        logging.getLogger("distillchain_trainer").setLevel(logging.WARNING)
        logging.getLogger("distillchain_trainer.stage_warnings").setLevel(logging.ERROR)
        logging.getLogger("distillchain_store").setLevel(logging.WARNING)
    return progress


class _Fields(logging.Formatter):
    """Constant text, then the fields: `... INFO distillchain_store.commit: stage committed digest=9c41 attempt=1`."""

    # What every record has. The formatter itself adds message and asctime, and Python 3.12 taskName.
    _usual = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}

    def __init__(self, rank: int | None) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%SZ")
        self.converter = time.gmtime
        self._rank = [] if rank is None else [f"rank={rank}"]

    def format(self, record: logging.LogRecord) -> str:
        fields = [f"{name}={value}" for name, value in vars(record).items() if name not in self._usual]
        return without_secrets(" ".join([super().format(record), *fields, *self._rank]))
