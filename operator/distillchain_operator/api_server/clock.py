"""The time by the clock of the API server, which writes when Jobs and pods were created and deleted.

On a node whose clock is an hour ahead, each timeout of half an hour would be over at once.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

# An answer has whole seconds and takes some time itself. Nothing here depends on a few seconds.
TOLERATED = timedelta(seconds=5)

log = logging.getLogger(__name__)


class ServerClock:
    """This machine's clock, corrected by what the answers of the API server say, unless the two nearly agree."""

    def __init__(self) -> None:
        self._correction = timedelta()

    def now(self) -> datetime:
        """The present time in UTC."""
        return datetime.now(UTC) + self._correction

    def note(self, date: str) -> None:
        """Takes the header `Date` of an answer that has just come; one that is no date counts for nothing."""
        try:
            found = parsedate_to_datetime(date).astimezone(UTC) - datetime.now(UTC)
        except ValueError:
            return
        correction = found if abs(found) > TOLERATED else timedelta()
        if correction and not self._correction:
            ahead_s = -round(correction.total_seconds())
            log.warning("the API server's clock counts, not that of this node", extra={"ahead_s": ahead_s})
        self._correction = correction
