"""Reconciles one chain: reads it live, decides, acts, writes status once and creates Events.

Knows the order of these steps; reconcile.py knows the reasons. If the operator is killed between any two lines, the
next reconcile detects what was done and completes the rest.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, assert_never

from distillchain_api.faults import BadDocument
from distillchain_api.graph import Plan, build_plan
from distillchain_api.plan_check import check_plan
from distillchain_api.resource.spec import parse_chain
from distillchain_api.resource.status import ChainStatus
from distillchain_api.wire.answer import Progress, parse_progress
from distillchain_operator.actions import CreateJob, CreatePart, Decision, DeleteJob, NotePods, SetSuspend, SetTtl
from distillchain_operator.chain_key import ChainKey
from distillchain_operator.cluster import ApiError, Cluster
from distillchain_operator.finished import FinishedChains, has_succeeded
from distillchain_operator.job_changes import JobChanger, Refused
from distillchain_operator.job_creation import JobCreator
from distillchain_operator.jobs import JobDefaults
from distillchain_operator.late_exports import refused_export
from distillchain_operator.metrics import Metrics
from distillchain_operator.observed import Observed, observe, parts_of
from distillchain_operator.own_writes import News, OwnWrites
from distillchain_operator.problems import (
    CHANGE_REFUSED,
    RECONCILE_FAILED,
    STATUS_REFUSED,
    problem_events,
    with_problem,
)
from distillchain_operator.reconcile import reconcile, running_pod
from distillchain_operator.settings import Settings
from distillchain_operator.stage_metrics import pods_now
from distillchain_operator.status import build_chain_status, invalid_status, status_patch, with_entry
from distillchain_operator.stored_status import parse_status
from distillchain_operator.transitions import transitions

log = logging.getLogger(__name__)

SOON_S = 0.1
KNOWN_S = 60.0  # for a watch that broke off: it lists everything again, but not the pods that were deleted meanwhile
REFUSED_RETRY_S = 30.0  # no event says that a webhook was corrected


def _utc_now() -> datetime:
    return datetime.now(UTC)


class Controller:
    """Reconciles chains, one at a time."""

    def __init__(
        self,
        cluster: Cluster,
        settings: Settings,
        *,
        clock: Callable[[], datetime] = _utc_now,
        monotonic: Callable[[], float] = time.monotonic,
        metrics: Metrics | None = None,
        finished: FinishedChains | None = None,
    ) -> None:
        self._cluster = cluster
        self._metrics = metrics or Metrics()
        self._finished = finished or FinishedChains()
        self._changer = JobChanger(cluster, monotonic=monotonic)
        self._settings = settings
        self._clock = clock
        self._monotonic = monotonic
        self._creator = JobCreator(
            cluster,
            pod_template=settings.pod_template,
            network_policies=settings.network_policies,
            monotonic=monotonic,
            metrics=self._metrics,
        )
        # Only spares requests: after a restart the log is read at once.
        self._progress_read_at: dict[ChainKey, float] = {}
        self.own_writes = OwnWrites(monotonic)
        # Of chains that run, so that their progress costs no further reads.
        self._observed: dict[ChainKey, tuple[Observed, float]] = {}

    async def reconcile(self, key: ChainKey) -> float | None:
        """Brings one chain a step further; returns the seconds until it is due again without an event."""
        news = self.own_writes.take_news(key)
        if news is News.NOTHING:
            return self.own_writes.due_in(key)
        if news is News.CHANGE:
            self._observed.pop(key, None)  # before the reads: what changes during them is reported again
        try:
            due_s = await self._look(key)
        except BaseException:
            self.own_writes.forget(key)
            raise
        self.own_writes.looked(key, due_s)
        return due_s

    async def _look(self, key: ChainKey) -> float | None:
        document = await self._read(key)
        if document is None or "deletionTimestamp" in document["metadata"]:
            self._forget(key)
            return None  # the garbage collector deletes its Jobs
        previous = parse_status(document, key)
        if has_succeeded(document) and key not in self._finished:
            # After a start of the operator: nothing of it has changed, or there would be an event.
            self._finished.note(document["metadata"])
            self._metrics.reconciled(key, previous)
            return None
        try:
            return await self._reconcile(document, key, previous)
        except Exception as error:
            # A conflict or an API server that is away is over soon; nothing of this chain is wrong.
            if not isinstance(error, ApiError) or error.is_refusal:
                await self._report_failure(document, key, previous, error)
            raise

    async def _reconcile(self, document: dict[str, Any], key: ChainKey, previous: ChainStatus) -> float | None:
        try:
            plan = build_plan(parse_chain(document, from_cluster=True))
            check_plan(plan)
        except BadDocument as error:
            status, retry_s = await self._invalid(document, key, previous, [str(fault) for fault in error.faults])
            await self._write(document, key, previous, status)
            self._metrics.reconciled(key, status)
            return retry_s
        known = self._known(key)
        observed = known or await self._observe(plan.chain.metadata.uid, key)
        progress = await self._read_progress(plan, observed, key)
        decision = self._decide(plan, observed, previous, progress, key)
        if known is not None and decision.actions:
            known = None
            observed = await self._observe(plan.chain.metadata.uid, key)
            decision = self._decide(plan, observed, previous, progress, key)
        # Actions before status: if the operator is killed in between, the next reconcile finds the Job. A status that
        # was written first would name a Job that does not exist.
        status, retry_s = await self._act(document, plan, decision, key, previous)
        refused_s = await self._write(document, key, previous, status)
        pod = running_pod(plan, observed)
        since = pod.created_at if pod else None
        self._metrics.reconciled(key, status, runs_since=since, pods=pods_now(plan, observed))
        if pod is not None and known is None:
            self._observed[key] = observed, self._monotonic()
        if refused_s is None and has_succeeded({**document, "status": status.to_document()}):
            self._finished.note(document["metadata"])
        else:
            self._finished.forget(key)
        # Progress is in the pod's log, and a new line there is no event.
        reads_progress = pod is not None and any(entry.phase == "Running" for entry in status.entries)
        # A request that could not be handled has to wait for the backoff of what was refused.
        is_handled = status.handled_retry == decision.status.handled_retry
        look_again_s = decision.look_again_s if is_handled else None
        due = (retry_s, refused_s, look_again_s, self._settings.progress_s if reads_progress else None)
        return min((time_s for time_s in due if time_s is not None), default=None)

    def _decide(
        self, plan: Plan, observed: Observed, previous: ChainStatus, progress: Progress | None, key: ChainKey
    ) -> Decision:
        return reconcile(
            plan,
            observed,
            previous=previous,
            now=self._clock(),
            defaults=JobDefaults(
                self._settings.trainer_image or None, self._settings.pod_template, self._settings.network_policies
            ),
            progress=progress,
            backing_off=self._creator.backing_off(plan, key),
        )

    def _known(self, key: ChainKey) -> Observed | None:
        """What was read of Jobs and pods a moment ago, if no watch has reported a change since."""
        observed, read_at = self._observed.get(key, (None, 0.0))
        return observed if self._monotonic() - read_at < KNOWN_S else None

    def _forget(self, key: ChainKey) -> None:
        self._observed.pop(key, None)
        self._progress_read_at.pop(key, None)
        for memory in (self._creator, self._changer, self._metrics, self._finished, self.own_writes):
            memory.forget(key)

    async def _report_failure(
        self, document: dict[str, Any], key: ChainKey, previous: ChainStatus, error: Exception
    ) -> None:
        """Writes to status that the chain cannot be reconciled; the queue logs the error and tries again."""
        what = error.message if isinstance(error, ApiError) else f"{type(error).__name__}: {error}"
        problem = f"the operator cannot reconcile this chain and tries again: {what}; see the log of the operator"
        status = self._with_problem(document, previous, problem, reason=RECONCILE_FAILED)
        with contextlib.suppress(ApiError):  # the first error is the cause
            await self._write(document, key, previous, status)

    def _with_problem(
        self, document: dict[str, Any], status: ChainStatus, problem: str, *, reason: str, stalls: bool = True
    ) -> ChainStatus:
        generation = document["metadata"]["generation"]
        return with_problem(status, problem, reason=reason, generation=generation, now=self._clock(), stalls=stalls)

    async def _read(self, key: ChainKey) -> dict[str, Any] | None:
        try:
            return await self._cluster.get_chain(key.namespace, key.name)
        except ApiError as error:
            if error.status != 403 or not self._settings.namespaces:
                raise
            # The namespace was deleted, and the Role in it first. If it comes back, so do its chains (namespaces.py).
            log.info("chain may not be read", extra={"chain": str(key), "error": error.message})
            return None

    async def _invalid(
        self, document: dict[str, Any], key: ChainKey, previous: ChainStatus, faults: list[str]
    ) -> tuple[ChainStatus, float | None]:
        """The status of a chain whose spec is invalid. Running Jobs continue unless the spec says to suspend."""
        observed = await self._observe(document["metadata"]["uid"], key)
        running = [job for job in observed.jobs if not job.is_finished and not job.deleting]
        # Read from the document, because the spec as a whole could not be parsed.
        retry_s = None
        if document["spec"].get("suspend") is True:
            for job in running:
                if job.suspend_wanted:
                    continue
                if refused := await self._changer.change(SetSuspend(job.name, job.uid, suspend=True), key):
                    faults.append(refused.problem)
                    retry_s = refused.retry_s
        else:
            faults += [f"Job {job.name} keeps running; set spec.suspend: true to stop it" for job in running]
        generation = document["metadata"]["generation"]
        return invalid_status(faults, generation=generation, previous=previous, now=self._clock()), retry_s

    async def _observe(self, uid: str, key: ChainKey) -> Observed:
        # Jobs before pods: if a Job counts a pod as ended, the pod's end is seen too.
        jobs = await self._cluster.list_jobs(key.namespace, key.name)
        pods = await self._cluster.list_pods(key.namespace, key.name)
        observed = observe(chain_uid=uid, jobs=jobs, pods=pods)
        # A chain whose stages run on one node costs no further request.
        if not any(job.is_open_group for job in observed.jobs):
            return observed
        parts = parts_of(await self._cluster.list_services(key.namespace, key.name), kind="Service")
        if self._settings.network_policies:
            policies = await self._cluster.list_network_policies(key.namespace, key.name)
            parts |= parts_of(policies, kind="NetworkPolicy")
        return replace(observed, parts=parts)

    async def _read_progress(self, plan: Plan, observed: Observed, key: ChainKey) -> Progress | None:
        pod = running_pod(plan, observed)
        last = self._progress_read_at.get(key)
        if pod is None or (last is not None and self._monotonic() - last < self._settings.progress_s):
            return None
        self._progress_read_at[key] = self._monotonic()
        # Only the newest progress line counts; between them the trainer logs other lines.
        lines = await self._cluster.log_tail(key.namespace, pod.name)
        return next(filter(None, map(parse_progress, reversed(lines))), None)

    async def _act(
        self, document: dict[str, Any], plan: Plan, decision: Decision, key: ChainKey, previous: ChainStatus
    ) -> tuple[ChainStatus, float | None]:
        """Performs the actions; the status is the decision's unless the API server did not accept an object."""
        status, retries_s = decision.status, []
        refusals: list[Refused] = []
        is_open = False
        leaving = {action.uid for action in decision.actions if isinstance(action, DeleteJob)}
        for action in decision.actions:
            match action:
                case CreateJob() | CreatePart():
                    changes, retry_s, is_new = await self._creator.create(action, plan, key)
                    retries_s += [] if retry_s is None else [retry_s]
                    # Nothing else reports that the place of a Job that was refused is free.
                    retries_s += [SOON_S] if is_new and decision.has_more_starts else []
                    if changes and isinstance(action, CreateJob) and action.is_export:
                        changes = refused_export(plan, action.stage, changes)
                    if changes:
                        # The refusal changes phase and conditions of the chain too, so its status is built again.
                        entries = with_entry(status.entries, action.stage, **changes)
                        status = build_chain_status(plan, entries, previous=previous, now=self._clock())
                case SetSuspend() | NotePods() | SetTtl() if action.uid in leaving:
                    pass  # a Job that is deleted now must not run again before
                case DeleteJob() | SetSuspend() | NotePods() | SetTtl():
                    if refused := await self._changer.change(action, key):
                        refusals.append(refused)
                        is_open = is_open or (isinstance(action, DeleteJob) and action.asked_once)
                case _:
                    assert_never(action)
        if is_open:
            # The next look can ask for the deletion again only if it finds the user's request open, and the stages as
            # they were when the user made it.
            status = previous.model_copy(update={"message": status.message})
        # Last, because a Job that is refused builds the status again.
        for refused in refusals:
            retries_s.append(refused.retry_s)
            status = self._with_problem(document, status, refused.problem, reason=CHANGE_REFUSED, stalls=refused.stalls)
        return status, min(retries_s, default=None)

    async def _write(self, document: dict[str, Any], key: ChainKey, old: ChainStatus, new: ChainStatus) -> float | None:
        """Writes the status; if the API server refuses it, the old one with the reason, to try again in some seconds.

        Raises: ApiError 409 if the chain was edited since it was read; the queue retries with a fresh read.
        """
        # Most reconciles change nothing, and each write of a changed status causes another reconcile.
        if new == old:
            return None
        try:
            await self._patch(document, key, new)
        except ApiError as error:
            if error.status == 404:
                return None  # deleted since it was read
            if not error.is_refusal:
                raise
            return await self._write_refused(document, key, old, error)
        await self._announce(document, key, old, new)
        return None

    async def _write_refused(self, document: dict[str, Any], key: ChainKey, old: ChainStatus, error: ApiError) -> float:
        log.warning("status refused", extra={"chain": str(key), "error": error.message})
        problem = f"the API server refused the status of this chain: {error.message}"
        status = self._with_problem(document, old, problem, reason=STATUS_REFUSED)
        if status != old:
            await self._patch(document, key, status)
            await self._announce(document, key, old, status)
        return REFUSED_RETRY_S

    async def _patch(self, document: dict[str, Any], key: ChainKey, status: ChainStatus) -> None:
        version = document["metadata"]["resourceVersion"]
        patch = status_patch(status)
        written = await self._cluster.patch_status(key.namespace, key.name, resource_version=version, status=patch)
        self.own_writes.note(key, written)

    async def _announce(self, document: dict[str, Any], key: ChainKey, old: ChainStatus, new: ChainStatus) -> None:
        # After the write: a reconcile that ended in a conflict is repeated and would count and report its changes
        # twice.
        self._metrics.changed(key, old, new)
        for event in [*transitions(old, new), *problem_events(old, new)]:
            log.info("chain event", extra={"chain": str(key), "reason": event.reason, "note": event.message})
            try:
                await self._cluster.create_event(document, event)
            except ApiError as error:  # an Event is created once or not at all; the status is complete without it
                log.warning("event not created", extra={"chain": str(key), "error": error.message})
