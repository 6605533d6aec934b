"""`status -w`: shows a chain until it ends. The screens are in screens.py."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from distillchain_api.wire.answer import parse_progress
from distillchain_cli.api_server.chains import status_of
from distillchain_cli.api_server.cluster import Cluster
from distillchain_cli.api_server.trainer_pods import parse_trainer_pod
from distillchain_cli.api_server.watching import WatchedCollections
from distillchain_cli.errors import CliError, Refused, RunFailed, Unreachable
from distillchain_cli.status.events import Event, events_of
from distillchain_cli.status.outcome import Outcome, current_outcome
from distillchain_cli.status.snapshot import Losses, Snapshot, progress_of, training_stage

TICK_S = 1.0
STALL_PATIENCE_S = 60.0  # a stall such as a registry that is away for a moment clears by itself
LOSS_TAIL_LINES = 2000  # the trainer writes about a line per second, so this is the last half hour


def watch_status(
    cluster: Cluster, name: str, open_screen: Callable[[], Any], *, clock: Callable[[], datetime] | None = None
) -> Outcome:
    """Shows a chain until it succeeds, fails, or has been stalled for STALL_PATIENCE_S.

    Args:
        open_screen: returns a context manager of a status_screens.Screen.
    Raises: RunFailed when the chain is deleted, or the API server is unreachable for too long.
    """
    now = clock or (lambda: datetime.now(UTC))
    cluster.fetch_chain(name)  # fails at once if the name is wrong
    watched = _watch(cluster, name)
    losses = Losses()
    jobs_read: set[str] = set()
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
            snapshot = _snapshot(chain, events, losses, now(), disconnected=watched.disconnected)
            if (stage := training_stage(snapshot.status)) and stage.job and stage.job not in jobs_read:
                jobs_read.add(stage.job)
                threading.Thread(target=_read_losses, args=(cluster, name, stage.name, losses), daemon=True).start()
            screen.show(snapshot)
            with suppress(Unreachable):  # the watches report it, and this loop continues once the server answers
                outcome = current_outcome(chain)
                # While the connection is lost, the stall may have cleared without our knowledge.
                if outcome is None or (watched.disconnected and not outcome.final):
                    stalled_since = None
                    continue
                stalled_since = stalled_since or time.monotonic()
                if outcome.final or time.monotonic() - stalled_since >= STALL_PATIENCE_S:
                    return outcome


def _watch(cluster: Cluster, name: str) -> WatchedCollections:
    chain = cluster.chain_collection(name)
    try:
        return WatchedCollections(cluster, {"chain": chain, "events": cluster.events()})
    except Refused:  # the user may be allowed to read chains but not Events
        return WatchedCollections(cluster, {"chain": chain})


def _snapshot(
    chain: dict[str, Any], events: Sequence[Event], losses: Losses, now: datetime, *, disconnected: str
) -> Snapshot:
    status = status_of(chain)
    training = training_stage(status)
    if training and (line := progress_of(training)):
        losses.add_from_status(line)
    return Snapshot(
        chain=chain,
        status=status,
        now=now,
        event=events[-1] if events else None,
        losses=losses.of(training.name) if training else (),
        disconnected=disconnected,
    )


def _read_losses(cluster: Cluster, chain: str, stage: str, losses: Losses) -> None:
    """Adds the losses before this command was started. Without access to logs, the curve starts now."""
    try:
        pods = [parse_trainer_pod(document) for document in cluster.list(cluster.pods_of(chain))[0]]
        running = [pod for pod in pods if pod.is_leader and pod.stage == stage and pod.has_log and not pod.is_over]
        for line in cluster.log_lines(running[-1].name, tail=LOSS_TAIL_LINES) if running else ():
            if progress := parse_progress(line.partition(" ")[2]):
                losses.add(progress)
    except CliError:
        return
