"""What the user should know although the stage goes on: collected here, kept in manifest, status, table and report."""

from __future__ import annotations

import logging

log = logging.getLogger(__name__)

MAX_WARNINGS = 50  # a data set with thousands of odd rows must not flood the manifest


class StageWarnings:
    """The warnings of one stage, each a sentence that names field or file."""

    def __init__(self) -> None:
        # A dict as a set that keeps its order.
        self._sentences: dict[str, None] = {}

    def add(self, sentence: str) -> None:
        """Logs a warning and keeps it; one that was added before is not repeated."""
        if sentence not in self._sentences:
            self._sentences[sentence] = None
            log.warning("%s", sentence)

    @property
    def sentences(self) -> list[str]:
        """In the order in which they were added."""
        kept, more = list(self._sentences)[:MAX_WARNINGS], len(self._sentences) - MAX_WARNINGS
        return [*kept, f"{more} more warnings: see the trainer's log"] if more > 0 else kept
