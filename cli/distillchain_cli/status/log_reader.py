"""Reads the log of one pod across lost connections. Each line is returned once."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Iterator

from distillchain_cli.api_server.cluster import Cluster
from distillchain_cli.api_server.trainer_pods import parse_trainer_pod
from distillchain_cli.api_server.watching import PATIENCE_S
from distillchain_cli.errors import NoData, NotFound, Unreachable

FRACTION = re.compile(r"\.\d+")  # of a second, in a timestamp
SHORT_PATIENCE_S = 10  # without `follow` the user waits for the command to end
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 10.0


def read_log(
    cluster: Cluster,
    pod: str,
    *,
    follow: bool,
    tail: int | None,
    newest_s: int | None = None,
    note: Callable[[str], None],
) -> Iterator[str]:
    """Lines of a trainer's log; with `follow`, until the trainer has ended.

    Args:
        tail, newest_s: only the last lines, or those of the last seconds, this many.
    After a lost connection the log is read again from the second of the newest line. Raises: Unreachable when the
    connection cannot be restored in time.
    """
    patience_s = PATIENCE_S if follow else SHORT_PATIENCE_S
    position = _Position()
    failed_at: float | None = None
    pause_s = FIRST_PAUSE_S
    while True:
        try:
            since = position.second
            # The limits are for the first request: the next ones continue from the newest line.
            first: dict[str, int | None] = {} if since else {"tail": tail, "newest_s": newest_s}
            for line in cluster.log_lines(pod, follow=follow, since=since, **first):
                # A line arrived, so the connection works: patience starts from zero at the next failure.
                failed_at, pause_s = None, FIRST_PAUSE_S
                if (text := position.advance(line)) is not None:
                    yield text
            if not follow:
                return
            document = cluster.fetch_pod(pod)
            if document is None:
                return
            # While the pod runs, a proxy or kubelet must have closed the connection: follow on. If it is over, read
            # once more, for lines written between the end of the stream and this look at the pod.
            follow = not parse_trainer_pod(document).is_over
            time.sleep(FIRST_PAUSE_S if follow else 0)
        except NotFound:
            note(f"pod {pod} is deleted; lines that it wrote since then are lost")
            return
        except NoData:
            pass  # a trainer may be silent for a long time: reconnect without a message
        except Unreachable as error:
            now = time.monotonic()
            if failed_at is None:  # once per outage, not for every attempt
                note(f"reconnecting: {error}")
            failed_at = failed_at or now
            if now - failed_at > patience_s:
                raise
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        position.rewind()


class _Position:
    """A position in a log: the second of the newest line, and the lines of that second that were returned.

    It compares whole lines, because lines of stdout and stderr can arrive in another order than their timestamps.
    """

    def __init__(self) -> None:
        self.second: str | None = None
        self._returned: Counter[str] = Counter()
        self._skip: Counter[str] = Counter()

    def rewind(self) -> None:
        """Prepares to read again from `second`, because sinceTime has no fractions of seconds."""
        self._skip = self._returned.copy()

    def advance(self, line: str) -> str | None:
        """The line without its timestamp; None if it was returned before."""
        if self._skip[line]:
            self._skip[line] -= 1
            return None
        moment, _, text = line.partition(" ")
        second = FRACTION.sub("", moment)
        if self.second is None or second > self.second:
            self.second, self._returned = second, Counter()
        if second == self.second:
            self._returned[line] += 1
        return text
