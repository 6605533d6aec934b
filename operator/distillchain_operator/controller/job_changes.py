"""Deletes, suspends and annotates Jobs. What a webhook or a policy refuses is reported, and stops nothing else."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import NamedTuple, assert_never

from distillchain_operator.api_server.cluster import ApiError, Cluster
from distillchain_operator.chain_key import ChainKey
from distillchain_operator.decide.actions import DeleteJob, NotePods, RemoveSuspendNote, SetSuspend, SetTtl
from distillchain_operator.jobs.labels import PODS_ANNOTATION, SUSPENDED_ANNOTATION

log = logging.getLogger(__name__)

RETRY_S = 30.0  # no event says that a webhook or a policy was corrected

JobChange = DeleteJob | SetSuspend | RemoveSuspendNote | NotePods | SetTtl

_Change = tuple[type[JobChange], str, bool | None]
"""The kind of a change, the UID of its Job, and whether it suspends or resumes."""


class Refused(NamedTuple):
    """A change that the API server did not accept.

    Attributes:
        stalls: the chain does not continue until the user does something; otherwise the change may pass later.
    """

    problem: str
    stalls: bool
    retry_s: float


class JobChanger:
    """Changes Jobs; what was refused is not tried again until its backoff has expired."""

    def __init__(self, cluster: Cluster, *, monotonic: Callable[[], float]) -> None:
        self._cluster = cluster
        self._monotonic = monotonic
        # The text of a refusal may differ each time, and writing it to status is an event of the chain: without the
        # backoff, each refusal would cause the next.
        self._refused: dict[ChainKey, dict[_Change, tuple[Refused, float]]] = {}

    def forget(self, key: ChainKey) -> None:
        """The chain was deleted."""
        self._refused.pop(key, None)

    def is_backing_off(self, action: JobChange, key: ChainKey) -> bool:
        """Whether the change was refused and is not tried again yet."""
        refused = self._refused.get(key, {}).get(_without_content(action))
        return refused is not None and refused[1] > self._monotonic()

    async def change(self, action: JobChange, key: ChainKey) -> Refused | None:
        """Changes the Job; says what was refused, now or a moment ago."""
        change, now = _without_content(action), self._monotonic()
        # Most Jobs change only a few times, so what has expired is not kept.
        refusals = {other: known for other, known in self._refused.pop(key, {}).items() if known[1] > now}
        if refusals:
            self._refused[key] = refusals
        if change in refusals:
            refused, until = refusals[change]
            return refused._replace(retry_s=until - now)
        try:
            await self._perform(action, key)
        except ApiError as error:
            if not error.status:
                raise  # the status could not be written either
            log.warning("job not changed", extra={"chain": str(key), "job": action.name, "error": error.message})
            problem = f"the API server refused to {_verb(action)} Job {action.name}: {error.message}; retrying every "
            # The others only count pods and keep a Job for longer.
            stalls = error.is_refusal and isinstance(action, DeleteJob | SetSuspend)
            refused = Refused(f"{problem}{RETRY_S:.0f} s", stalls, RETRY_S)
            self._refused.setdefault(key, {})[change] = refused, self._monotonic() + RETRY_S
            return refused
        return None

    async def _perform(self, action: JobChange, key: ChainKey) -> None:
        where = {"chain": str(key), "job": action.name}
        match action:
            case DeleteJob():
                await self._cluster.delete_job(key.namespace, action.name, uid=action.uid)
                log.info("job deleted", extra={**where, "why": action.why})
            case SetSuspend():
                await self._cluster.set_suspend(key.namespace, action.name, uid=action.uid, suspend=action.suspend)
                log.info("job suspended" if action.suspend else "job resumed", extra=where)
            case RemoveSuspendNote():
                note = {SUSPENDED_ANNOTATION: None}
                await self._cluster.annotate_job(key.namespace, action.name, uid=action.uid, annotations=note)
            case NotePods():
                annotations = {PODS_ANNOTATION: ",".join(action.pods)}
                await self._cluster.annotate_job(key.namespace, action.name, uid=action.uid, annotations=annotations)
            case SetTtl():
                await self._cluster.set_ttl(key.namespace, action.name, uid=action.uid, seconds=action.seconds)
                log.info("job expires", extra={**where, "ttl_s": action.seconds})
            case _:
                assert_never(action)


def _without_content(action: JobChange) -> _Change:
    """What the backoff of a change counts for: the pods that are noted may differ at each look."""
    return type(action), action.uid, action.suspend if isinstance(action, SetSuspend) else None


def _verb(action: JobChange) -> str:
    match action:
        case DeleteJob():
            return "delete"
        case SetSuspend():
            return "suspend" if action.suspend else "resume"
        case NotePods() | RemoveSuspendNote():
            return "annotate"
        case SetTtl():
            return "set the TTL of"
        case _:
            assert_never(action)
