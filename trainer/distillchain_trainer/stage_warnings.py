"""Warnings of a stage that continues: collected here, and kept in manifest, status, table and report."""

from __future__ import annotations

import logging
from collections.abc import Iterable

log = logging.getLogger(__name__)

MAX_WARNINGS = 50  # a data set with thousands of odd rows must not flood the manifest


class StageWarnings:
    """The warnings of one stage, each a sentence that names field or file.

    Args:
        logged: warnings of another process of this stage, which has logged them.
    """

    def __init__(self, logged: Iterable[str] = ()) -> None:
        # A dict as a set that keeps its order.
        self._sentences: dict[str, None] = dict.fromkeys(logged)

    def add(self, sentence: str) -> None:
        """Logs a warning and keeps it; one that was added before is not repeated."""
        if sentence not in self._sentences:
            self._sentences[sentence] = None
            log.warning("%s", sentence)

    def replace(self, before: str, sentence: str) -> None:
        """Adds a sentence in the place of one that it contains; an empty `before` replaces none."""
        self._sentences.pop(before, None)
        self.add(sentence)

    @property
    def sentences(self) -> list[str]:
        """In the order in which they were added."""
        kept, more = list(self._sentences)[:MAX_WARNINGS], len(self._sentences) - MAX_WARNINGS
        return [*kept, f"{more} more warnings: see the trainer's log"] if more > 0 else kept
