"""Whether a chain runs, waits for its turn, or neither, when the running chains of a namespace are limited. Pure.

A chain that has its turn keeps it until it ends, stalls or is suspended, also between two stages. It is derived from
its Jobs, pods and status, so a restart of the operator changes nothing. Exports that are made after the commit do not
count: they run on CPUs.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import dataclass
from enum import Enum

from distillchain_api.resource.status import ChainStatus
from distillchain_operator.decide.actions import Action, CreateJob, DeleteJob, SetSuspend
from distillchain_operator.decide.peers import needs_user
from distillchain_operator.jobs.observed import Observed
from distillchain_operator.status.chain_status import waits_for_turn


class Turn(Enum):
    """What a chain is for the limit of its namespace."""

    RUNS = "runs"
    WAITS = "waits"
    RESTS = "rests"


@dataclass(frozen=True)
class Place:
    """Whether a chain that has no turn may start.

    Its message is the same as long as the chain waits: a thousand chains must not be written each time one starts.
    """

    namespace: str
    limit: int
    is_free: bool = False
    was_given_up: bool = False
    """The chain does not run, although its stored status may still say so."""

    @property
    def message(self) -> str:
        """For users."""
        chains = "1 chain runs" if self.limit == 1 else f"{self.limit} chains run"
        return (
            f"waiting for its turn: {chains} at a time in namespace {self.namespace} (maxRunningChains), oldest first"
        )


def keeps_turn(observed: Observed, previous: ChainStatus, place: Place) -> bool:
    """Whether a chain may start its next Job without asking for a turn.

    Args:
        previous: its status as stored.
        place: that it would have to ask for.
    """
    waits = waits_for_turn(previous)
    return turn_after(observed, previous, waits=waits, was_given_up=place.was_given_up) is Turn.RUNS


def turn_after(
    observed: Observed,
    status: ChainStatus,
    actions: Iterable[Action] = (),
    *,
    waits: bool,
    was_given_up: bool = False,
) -> Turn:
    """What a chain is for the limit once these actions are done.

    Args:
        status: after the actions.
        actions: without those that the API server has refused.
        waits: the chain may not start because it has no turn.
        was_given_up: others may have its place, so that it runs again only with a Job or a pod.
    """
    exports = {job.uid for job in observed.jobs if job.exports_only}
    left = [pod for pod in observed.pods if not pod.is_over and pod.job_uid not in observed.foreign_jobs | exports]
    # A pod that waits for a Secret has no use of its turn.
    stuck = {entry.name for entry in status.entries if needs_user(entry)}
    if any(pod.running or pod.stage not in stuck for pod in left) or _has_active_job(observed, stuck):
        return Turn.RUNS
    if waits:
        return Turn.WAITS
    if any(map(_starts, actions)):
        return Turn.RUNS
    if any(condition.type == "Stalled" and condition.status == "True" for condition in status.conditions):
        return Turn.RESTS
    # A Job that is suspended, by the user or by Kueue, holds no GPU.
    is_held = any(not job.is_finished and not job.deleting and not job.exports_only for job in observed.jobs)
    return Turn.RUNS if _goes_on(status) and not (is_held or was_given_up) else Turn.RESTS


def has_job(observed: Observed, actions: Iterable[Action]) -> bool:
    """Whether a chain has an unfinished Job once these actions are done, which may be suspended."""
    actions = tuple(actions)
    deleted = {action.uid for action in actions if isinstance(action, DeleteJob)}
    left = (job for job in observed.jobs if not job.is_finished and not job.deleting and not job.exports_only)
    return any(job.uid not in deleted for job in left) or any(map(_starts, actions))


def _starts(action: Action) -> bool:
    match action:
        case CreateJob():
            return not action.is_export
        case SetSuspend():
            return not action.suspend
        case _:
            return False


def _has_active_job(observed: Observed, stuck: Container[str]) -> bool:
    """Whether a Job may run, or is deleted: it is there until its pods have stopped, which may not be known yet."""
    left = (job for job in observed.jobs if not (job.is_finished or job.suspend_wanted or job.exports_only))
    return any(job.stage not in stuck for job in left)


def _goes_on(status: ChainStatus) -> bool:
    """Whether a chain that has no Job continues by itself: it is between two stages, or in a pause."""
    return status.phase == "Running" or any(entry.next_start_at for entry in status.entries)
