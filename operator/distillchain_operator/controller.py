"""One look at one chain: read live, decide, act, write status once, tell events.

Knows the order in which things are done and nothing of why; reconcile knows that. Killed between any two lines, the
next look sees what was done and does the rest.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, NamedTuple, assert_never

from distillchain_api.failures import FailureClass
from distillchain_api.faults import BadDocument
from distillchain_api.graph import Plan, build_plan
from distillchain_api.resource.spec import parse_chain
from distillchain_api.resource.status import ChainStatus
from distillchain_api.wire.answer import Progress, fit, parse_progress
from distillchain_operator.cluster import ApiError, Cluster
from distillchain_operator.jobs import JobDefaults, build_probe_pod
from distillchain_operator.labels import PODS_ANNOTATION
from distillchain_operator.metrics import Metrics
from distillchain_operator.observed import Observed, is_controlled_by, observe
from distillchain_operator.reconcile import CreateJob, Decision, DeleteJob, NotePods, SetSuspend, reconcile, running_pod
from distillchain_operator.settings import Settings
from distillchain_operator.status import build_chain_status, invalid_status, status_patch, with_entry
from distillchain_operator.transitions import transitions

log = logging.getLogger(__name__)

OWN_JOB_RETRY_S = 1.0  # it was not listed a moment ago
NAME_TAKEN_RETRY_S = 5.0  # the garbage collector needs some seconds for the Jobs of a chain that was made anew
REFUSED_RETRY_S = 30.0  # a quota may be free again, a policy corrected: nothing tells us
AGAIN = f"tried again every {REFUSED_RETRY_S:.0f} s"


class _Refusal(NamedTuple):
    """A Job that could not be made, what the stage's entry says of it, and until when it is not asked for again."""

    wish: tuple[str, int, str]
    """UID and generation of the chain, name of the Job."""
    changes: dict[str, Any]
    until: float
    """Monotonic."""


class ChainKey(NamedTuple):
    """Which chain."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


def _utc_now() -> datetime:
    return datetime.now(UTC)


class Controller:
    """Carries out chains, one look at a time."""

    def __init__(
        self,
        cluster: Cluster,
        settings: Settings,
        *,
        clock: Callable[[], datetime] = _utc_now,
        monotonic: Callable[[], float] = time.monotonic,
        metrics: Metrics | None = None,
    ) -> None:
        self._cluster = cluster
        self._metrics = metrics or Metrics()
        self._settings = settings
        self._clock = clock
        self._monotonic = monotonic
        # Both only spare requests: a new life of the operator asks at once, and decides the same.
        self._progress_read_at: dict[ChainKey, float] = {}
        self._refusals: dict[ChainKey, _Refusal] = {}

    async def look(self, key: ChainKey) -> float | None:
        """Brings one chain a step further; returns the seconds after which to look again without news."""
        try:
            document = await self._cluster.get_chain(key.namespace, key.name)
        except ApiError as error:
            if error.status != 403 or not self._settings.namespaces:
                raise
            # Its namespace is gone with the Role in it; one that comes again brings its chains (namespaces.py).
            log.info("chain may not be read", extra={"chain": str(key), "error": error.message})
            document = None
        if document is None or "deletionTimestamp" in document["metadata"]:
            self._progress_read_at.pop(key, None)
            self._refusals.pop(key, None)
            self._metrics.forget(key)
            return None  # its Jobs go by ownerReference
        previous = parse_status(document, key)
        try:
            plan = build_plan(parse_chain(document))
        except BadDocument as error:
            status = await self._say_invalid(document, key, previous, [str(fault) for fault in error.faults])
            await self._write(document, key, previous, status)
            self._metrics.looked(key, status)
            return None
        observed = await self._observe(plan.chain.metadata.uid, key)
        progress = await self._read_progress(plan, observed, key)
        decision = reconcile(
            plan,
            observed,
            previous=previous,
            now=self._clock(),
            defaults=JobDefaults(self._settings.trainer_image or None, self._settings.pod_template),
            progress=progress,
        )
        status, look_again_s = await self._act(plan, decision, key, previous)
        await self._write(document, key, previous, status)
        pod = running_pod(plan, observed)
        self._metrics.looked(key, status, runs_since=pod.created_at if pod else None)
        reads_progress = status.phase == "Running" and pod is not None
        due = (look_again_s, decision.look_again_s, self._settings.progress_s if reads_progress else None)
        return min((time_s for time_s in due if time_s is not None), default=None)

    async def _say_invalid(
        self, document: dict[str, Any], key: ChainKey, previous: ChainStatus, faults: list[str]
    ) -> ChainStatus:
        """The status of a chain whose spec cannot be read. What runs goes on, unless the spec says to suspend."""
        observed = await self._observe(document["metadata"]["uid"], key)
        running = [job for job in observed.jobs if not job.is_finished and not job.deleting]
        if document["spec"].get("suspend") is True:
            for job in running:
                if not job.suspend_wanted:
                    await self._cluster.set_suspend(key.namespace, job.name, uid=job.uid, suspend=True)
        else:
            faults += [f"Job {job.name} goes on; spec.suspend: true stops it" for job in running]
        generation = document["metadata"]["generation"]
        return invalid_status(faults, generation=generation, previous=previous, now=self._clock())

    async def _observe(self, uid: str, key: ChainKey) -> Observed:
        # Jobs before pods: a pod that a Job counts as ended is then seen in its end.
        jobs = await self._cluster.list_jobs(key.namespace, key.name)
        pods = await self._cluster.list_pods(key.namespace, key.name)
        return observe(chain_uid=uid, jobs=jobs, pods=pods)

    async def _read_progress(self, plan: Plan, observed: Observed, key: ChainKey) -> Progress | None:
        pod = running_pod(plan, observed)
        last = self._progress_read_at.get(key)
        if pod is None or (last is not None and self._monotonic() - last < self._settings.progress_s):
            return None
        self._progress_read_at[key] = self._monotonic()
        lines = await self._cluster.log_tail(key.namespace, pod.name)
        return next(filter(None, map(parse_progress, reversed(lines))), None)

    async def _act(
        self, plan: Plan, decision: Decision, key: ChainKey, previous: ChainStatus
    ) -> tuple[ChainStatus, float | None]:
        """Performs the actions; the status is the decision's, unless the API server would not have one."""
        status, look_again_s = decision.status, None
        for action in decision.actions:
            match action:
                case CreateJob():
                    changes, look_again_s = await self._create_in_time(action, plan, key)
                    if changes:
                        stages = with_entry(status.stages, action.stage, **changes)
                        status = build_chain_status(plan, stages, previous=previous, now=self._clock())
                case DeleteJob():
                    await self._cluster.delete_job(key.namespace, action.name, uid=action.uid)
                    log.info("job deleted", extra={"chain": str(key), "job": action.name, "why": action.why})
                case SetSuspend():
                    await self._cluster.set_suspend(key.namespace, action.name, uid=action.uid, suspend=action.suspend)
                    log.info(
                        "job suspended" if action.suspend else "job resumed",
                        extra={"chain": str(key), "job": action.name},
                    )
                case NotePods():
                    await self._cluster.annotate_job(
                        key.namespace, action.name, uid=action.uid, annotations={PODS_ANNOTATION: ",".join(action.pods)}
                    )
                case _:
                    assert_never(action)
        return status, look_again_s

    async def _create_in_time(
        self, action: CreateJob, plan: Plan, key: ChainKey
    ) -> tuple[dict[str, Any], float | None]:
        """As `_create`, but the same wish is not uttered again before its time.

        A refusal may read differently each time (a webhook's ports), and its being written is news of the chain.
        """
        metadata = plan.chain.metadata
        wish = (metadata.uid, metadata.generation, action.job["metadata"]["name"])
        refusal = self._refusals.get(key)
        if refusal is not None and refusal.wish == wish and refusal.until > self._monotonic():
            return refusal.changes, refusal.until - self._monotonic()
        changes, retry_s = await self._create(action, plan, key)
        if changes and retry_s:
            self._refusals[key] = _Refusal(wish, changes, self._monotonic() + retry_s)
        return changes, retry_s

    async def _create(self, action: CreateJob, plan: Plan, key: ChainKey) -> tuple[dict[str, Any], float | None]:
        """Makes a Job; returns how the stage's entry differs from a started one, and when to look again."""
        name = action.job["metadata"]["name"]
        asked = "the operator's dry run of the stage's pod"
        try:
            # The Job alone would be accepted with a pod that its controller can never make.
            await self._cluster.dry_run_pod(build_probe_pod(action.job))
            asked = f"Job {name}"
            await self._cluster.create_job(action.job, dry_run=True)
            await self._cluster.create_job(action.job)
        except ApiError as error:
            if not error.status:
                raise
            if error.status == 409:
                return await self._name_taken(name, plan, key, error)
            if error.is_namespace_terminating:
                return _waits("the namespace is being deleted"), REFUSED_RETRY_S
            message = f"{asked} was refused: {error.message}; {AGAIN}"
            if error.is_quota or not error.is_refusal:
                log.warning("job not taken", extra={"chain": str(key), "stage": action.stage, "error": error.message})
                return _waits(message), REFUSED_RETRY_S
            self._metrics.job_refused()
            log.warning("job refused", extra={"chain": str(key), "stage": action.stage, "error": error.message})
            refused = {
                "phase": "Failed",
                "job": None,
                "message": fit(message),
                "failure_class": FailureClass.POD_REJECTED,
            }
            return refused, REFUSED_RETRY_S
        self._metrics.job_created()
        log.info("job created", extra={"chain": str(key), "stage": action.stage, "job": name})
        return {}, None

    async def _name_taken(
        self, name: str, plan: Plan, key: ChainKey, error: ApiError
    ) -> tuple[dict[str, Any], float | None]:
        """A Job of this name is there: ours (an earlier look made it), or that of another owner; or the API server
        has another conflict, such as two writers of one quota."""
        job = await self._cluster.get_job(key.namespace, name)
        if job is None:
            return _waits(f"{error.message}; tried again"), NAME_TAKEN_RETRY_S
        if is_controlled_by(job, plan.chain.metadata.uid):
            return {}, OWN_JOB_RETRY_S
        message = f"waiting for Job {name} to be gone: its owner is another, such as an earlier chain {key.name}"
        return _waits(message), NAME_TAKEN_RETRY_S

    async def _write(self, document: dict[str, Any], key: ChainKey, old: ChainStatus, new: ChainStatus) -> None:
        if new == old:
            return
        try:
            await self._cluster.patch_status(
                key.namespace,
                key.name,
                resource_version=document["metadata"]["resourceVersion"],
                status=status_patch(new),
            )
        except ApiError as error:
            if error.status == 404:
                return  # deleted since it was read
            raise
        self._metrics.changed(key, old, new)
        for event in transitions(old, new):
            log.info("chain event", extra={"chain": str(key), "reason": event.reason, "note": event.message})
            try:
                await self._cluster.create_event(document, event)
            except ApiError as error:  # an Event is told once or not at all; the status holds the truth
                log.warning("event not told", extra={"chain": str(key), "error": error.message})


def _waits(message: str) -> dict[str, Any]:
    """How the entry of a stage whose Job could not be made yet differs from a started one."""
    return {"phase": "Pending", "job": None, "message": fit(message)}


def parse_status(document: dict[str, Any], key: ChainKey) -> ChainStatus:
    """The status as stored; an empty one where another release wrote what cannot be read.

    Nothing is lost by that: committed stages are found in the store again by their trainers.
    """
    try:
        return ChainStatus.parse(document.get("status") or {})
    except BadDocument as error:
        log.warning("status cannot be read, it is built anew", extra={"chain": str(key), "error": str(error)})
        return ChainStatus()
