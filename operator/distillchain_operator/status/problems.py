"""How a chain's status says that the operator could not do its work. Pure."""

from __future__ import annotations

from datetime import datetime

from distillchain_api.resource.status import ChainStatus, Condition, ConditionType
from distillchain_api.wire.answer import fit
from distillchain_operator.status.chain_status import MESSAGE_BYTES, timestamp
from distillchain_operator.status.transitions import NOTE_BYTES, ChainEvent

RECONCILE_FAILED = "ReconcileFailed"
STATUS_REFUSED = "StatusRefused"
CHANGE_REFUSED = "ChangeRefused"


def with_problem(
    status: ChainStatus, problem: str, *, reason: str, generation: int, now: datetime, stalls: bool = True
) -> ChainStatus:
    """The status with a problem in its message and, if it `stalls` the chain, in its conditions.

    The rest of the status stays as it is: `observedGeneration` too, so that an edit is still noticed later.
    """
    # A status that was stored before may hold a problem that is gone.
    before = status.message if reason == CHANGE_REFUSED else None
    update: dict[str, object] = {"message": fit("; ".join(filter(None, (before, problem))), MESSAGE_BYTES)}
    if stalls:
        update["conditions"] = _conditions(status, problem, reason=reason, generation=generation, now=now)
    return status.model_copy(update=update)


def _conditions(status: ChainStatus, problem: str, *, reason: str, generation: int, now: datetime) -> list[Condition]:
    stalled: dict[ConditionType, bool] = {"Ready": False, "Reconciling": False, "Stalled": True}
    before = {condition.type: condition for condition in status.conditions}
    changed = {
        kind: Condition(
            type=kind,
            status="True" if is_true else "False",
            reason=reason,
            message=fit(problem, MESSAGE_BYTES),
            observed_generation=generation,
            last_transition_time=_transition(before.get(kind), is_true=is_true, now=now),
        )
        for kind, is_true in stalled.items()
    }
    return list((before | changed).values())


def _transition(before: Condition | None, *, is_true: bool, now: datetime) -> str:
    unchanged = before is not None and (before.status == "True") is is_true
    return before.last_transition_time if before is not None and unchanged else timestamp(now)


def problem_events(old: ChainStatus, new: ChainStatus) -> list[ChainEvent]:
    """The Event of a problem that is new."""
    problem = _problem(new)
    if problem is None or _problem(old) == problem:
        return []
    return [ChainEvent(problem.reason, fit(problem.message, NOTE_BYTES), "Warning")]


def _problem(status: ChainStatus) -> Condition | None:
    reasons = (RECONCILE_FAILED, STATUS_REFUSED, CHANGE_REFUSED)
    found = (c for c in status.conditions if c.type == "Stalled" and c.status == "True" and c.reason in reasons)
    return next(found, None)
