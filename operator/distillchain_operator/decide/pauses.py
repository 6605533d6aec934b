"""A Job that holds idle GPUs is deleted and created again after a pause: how long, and what status says. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from distillchain_api.digests import sha256_of
from distillchain_api.failures import FailureClass
from distillchain_api.wire.answer import fit
from distillchain_operator.jobs.observed import ObservedJob
from distillchain_operator.status.chain_status import timestamp

# The pause doubles: a GPU that is not free after minutes will hardly be free a minute later.
FIRST = timedelta(minutes=1)
LONGEST = timedelta(minutes=30)


@dataclass(frozen=True)
class Pause:
    """A pause before the Job of a stage or an export is created again.

    Attributes:
        why: why its Job is deleted.
        number: of such pauses in a row.
        failure_class: set if the user has to know: it will hardly go away without them.
    """

    why: str
    message: str
    number: int
    ends_at: str
    failure_class: FailureClass | None = None


def build_pause(
    job: ObservedJob,
    *,
    what: str,
    detail: str,
    why: str,
    number: int,
    now: datetime,
    failure_class: FailureClass | None = None,
) -> Pause:
    """The pause after a Job.

    Args:
        what: what its pods did, as the first half of a sentence.
        detail: what is known of one of them; may be empty.
    """
    ends_at = timestamp(now + _length(number, job))
    message = f"{what}, so Job {job.name} was deleted; it is created again at {ends_at}"
    return Pause(why, fit("; ".join(filter(None, (message, detail)))), number, ends_at, failure_class)


def _length(number: int, job: ObservedJob) -> timedelta:
    longest = min(FIRST * 2.0 ** min(number - 1, 20), LONGEST)
    # Between half and all of it, different for each Job: otherwise two chains that wait for each other's GPUs would try
    # again at the same moment.
    return longest * (0.5 + int(sha256_of(job.uid)[:8], 16) / 2**33)


def lasts(until: str | None, *, now: datetime) -> bool:
    """Whether a pause that ends then is not over."""
    return until is not None and now < datetime.fromisoformat(until)
