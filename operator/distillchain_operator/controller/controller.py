"""Reconciles one chain: reads it, decides, acts, writes status once and creates Events.

Knows the order of these steps; reconcile.py knows the reasons. If the operator is killed between any two lines, the
next reconcile detects what was done and completes the rest.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Any, assert_never

from distillchain_api.faults import BadDocument
from distillchain_api.graph import Plan
from distillchain_api.resource.status import ChainStatus
from distillchain_api.wire.answer import Progress, parse_progress
from distillchain_operator.api_server.cluster import ApiError, Cluster
from distillchain_operator.caches.children import Children, version_of
from distillchain_operator.caches.finished import FinishedChains, has_succeeded, jobs_expire
from distillchain_operator.caches.known_chains import KnownChains
from distillchain_operator.caches.neighbours import Neighbours
from distillchain_operator.caches.recent_plans import RecentPlans
from distillchain_operator.chain_key import ChainKey
from distillchain_operator.controller.events import Events
from distillchain_operator.controller.job_changes import JobChanger, Refused
from distillchain_operator.controller.job_creation import JobCreator, TriedPod
from distillchain_operator.controller.reader import Reader
from distillchain_operator.controller.status_writer import StatusWriter
from distillchain_operator.decide.actions import (
    SOON_S,
    Action,
    CreateJob,
    CreatePart,
    Decision,
    DeleteJob,
    NotePods,
    RemoveSuspendNote,
    SetSuspend,
    SetTtl,
)
from distillchain_operator.decide.decided import Decided
from distillchain_operator.decide.expired import with_expired
from distillchain_operator.decide.late_exports import refused_export
from distillchain_operator.decide.reconcile import reconcile, running_pod
from distillchain_operator.decide.suspension import stop_all
from distillchain_operator.jobs.observed import Observed
from distillchain_operator.jobs.stage_job import JobDefaults
from distillchain_operator.metrics.operator_metrics import Metrics
from distillchain_operator.metrics.stage_metrics import pods_now
from distillchain_operator.settings import Settings
from distillchain_operator.status.chain_status import build_chain_status, invalid_status, with_entry
from distillchain_operator.status.problems import CHANGE_REFUSED, RECONCILE_FAILED
from distillchain_operator.status.stored import parse_status

log = logging.getLogger(__name__)


async def go_on(_: ChainKey) -> None:
    """Nothing is more urgent."""


def _is_lasting(error: Exception) -> bool:
    # A conflict or an API server that is away is over soon; nothing of this chain is wrong.
    return not isinstance(error, ApiError) or error.is_refusal


class Controller:
    """Reconciles chains, one at a time; `clock` is the API server's, which writes the times of Jobs and pods."""

    def __init__(
        self,
        cluster: Cluster,
        settings: Settings,
        *,
        clock: Callable[[], datetime],
        monotonic: Callable[[], float] = time.monotonic,
        metrics: Metrics | None = None,
        finished: FinishedChains | None = None,
        children: Children | None = None,
        neighbours: Neighbours | None = None,
        events: Events | None = None,
        give_way: Callable[[ChainKey], Awaitable[None]] = go_on,
    ) -> None:
        self._cluster = cluster
        self._metrics = metrics or Metrics()
        self._finished = finished or FinishedChains()
        self._neighbours = neighbours or Neighbours(settings.max_running_chains)
        self._changer = JobChanger(cluster, monotonic=monotonic)
        self._settings = settings
        defaults = JobDefaults(settings.trainer_image or None, settings.pod_template, settings.network_policies)
        self._plans = RecentPlans(defaults)
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
        self._underway: dict[ChainKey, Decided] = {}  # looks whose actions are not done yet
        self.chains = KnownChains(self._finished, monotonic=monotonic)
        self._writer = StatusWriter(
            cluster,
            events=events or Events(cluster),
            chains=self.chains,
            metrics=self._metrics,
            clock=clock,
            monotonic=monotonic,
            give_way=give_way,
        )
        self._reader = Reader(
            cluster,
            settings,
            chains=self.chains,
            children=children or Children(self._finished),
            monotonic=monotonic,
            unreadable=self._neighbours.note_unreadable,
        )

    async def reconcile(self, key: ChainKey) -> float | None:
        """Brings one chain a step further; returns the seconds until it is due again without an event."""
        if not self.chains.take_news(key):
            return self.chains.due_in(key)
        try:
            due_s = await self._look(key)
        except BaseException:
            self.chains.forget(key)
            raise
        self.chains.looked(key, due_s)
        return due_s

    async def _look(self, key: ChainKey) -> float | None:
        try:
            document = await self._reader.find_chain(key)
            previous = parse_status(document or {}, key)
        except Exception as error:
            if _is_lasting(error):
                self._neighbours.failed(key)
            raise
        if document is None:
            self._forget(key)
            self._neighbours.forget(key)
            return None
        if has_succeeded(document) and key not in self._finished and not jobs_expire(document):
            # After a start of the operator: nothing of it has changed, or there would be an event.
            self._finished.note(document)
            self._neighbours.forget(key)
            self._metrics.reconciled(key, previous)
            return None
        try:
            return await self._reconcile(document, key)
        except Exception as error:
            # Otherwise a Job may exist all the same, as after a lost answer: until the next look, which comes soon, it
            # keeps its place and its stage.
            if _is_lasting(error):
                if (decided := self._underway.get(key)) is not None:
                    # What it wanted to start holds no place and no stage.
                    self._note(decided, decided.previous)
                self._neighbours.failed(key, self._reader.known_children(document, key), previous)
                await self._report_failure(document, key, previous, error)
            raise
        finally:
            self._underway.pop(key, None)

    async def _reconcile(self, document: dict[str, Any], key: ChainKey) -> float | None:
        if self._neighbours.needs_list(key.namespace):
            await self._list_neighbours(key.namespace)
        observed = await self._reader.find_children(document, key)
        decided = None
        if observed is not None:
            decided = await self._decide(document, observed, key)
            if not self._needs_live_reads(decided, key):
                return await self._carry_out(decided, key)
        # At the same time, because a GPU waits for both. A try of a Job that is then not created changes nothing.
        sight, tried = await self._cluster.both(self._reader.read(key), self._creator.try_pods(decided, key))
        if sight is None:
            self._forget(key)
            self._neighbours.forget(key)
            return None
        decided = await self._decide(*sight, key, cached=decided)
        # After the Jobs were listed, another operator may have deleted some and noted that in status, or the user may
        # have asked for a retry of Jobs that are newer.
        of_retry = decided.handles_retry or decided.commits_after_retry
        if of_retry and version_of(decided.document) != version_of(document):
            raise ApiError(409, "the chain was changed while its Jobs were read", reason="Conflict")
        return await self._carry_out(decided, key, tried)

    async def _decide(
        self, document: dict[str, Any], observed: Observed, key: ChainKey, *, cached: Decided | None = None
    ) -> Decided:
        """Decides by what was read live if there is a decision by what was cached."""
        previous = parse_status(document, key)
        if cached is not None:
            observed = with_expired(observed, cached.observed, previous=previous)
        try:
            plan, wanted = self._plans.of(document)
        except BadDocument as error:
            decision = self._stop_if_invalid(document, observed, previous, [str(fault) for fault in error.faults])
            return Decided(document, None, observed, previous, decision, [])
        progress = (cached and cached.progress) or await self._read_progress(plan, observed, key)
        decision = reconcile(
            plan,
            observed,
            previous=previous,
            now=self._clock(),
            wanted=wanted,
            progress=progress,
            backing_off=self._creator.backing_off(plan, key),
            refused=self._creator.refused(plan, key),
            turn=self._neighbours.turn_of(document),
            peers=self._neighbours.peers_of(document, plan),
        )
        decided = self._underway[key] = Decided(document, plan, observed, previous, decision, [], progress)
        tried = [action for action in decision.actions if not self._is_backing_off(action, decided, key)]
        # While a refusal is remembered, the chain starts nothing, and its status stays as it is.
        status = decision.status if len(tried) == len(decision.actions) else previous
        # Before the next await, or another chain could take the same place or start the same stage. A Job that is
        # deleted keeps its stage until that is done.
        kept = [action for action in tried if not isinstance(action, DeleteJob)]
        self._neighbours.looked(document, plan, observed, status, kept, waits=decision.waits_for_turn)
        return decided

    def _note(self, decided: Decided, status: ChainStatus) -> None:
        """What a look has found, with the actions that are done."""
        document, plan, observed, _, decision, done, _ = decided
        self._neighbours.looked(document, plan, observed, status, done, waits=decision.waits_for_turn)

    async def _list_neighbours(self, namespace: str) -> None:
        """Once for each namespace whose chains were not listed at the start."""
        async for document in self._cluster.list_chains(namespace):
            self._neighbours.note_stored(document)
        self._neighbours.note_listed(namespace)

    def _needs_live_reads(self, decided: Decided, key: ChainKey) -> bool:
        """Whether a decision on what the caches have may create or delete a Job, or declare what a stage has become.

        A failure is final, and the caches may have the end of a Job before that of its pod, which says why it failed.
        After a retry they may still have the answer of a Job that was deleted, so that its stage trains again; at the
        retry, they may lack a Job that has to be deleted, which no later look would do.
        """
        if decided.fails or decided.handles_retry or decided.commits_after_retry:
            return True
        return any(self._is_final(action, decided, key) for action in decided.decision.actions)

    def _is_final(self, action: Action, decided: Decided, key: ChainKey) -> bool:
        match action:
            case CreateJob() | DeleteJob():
                return not self._is_backing_off(action, decided, key)
            case CreatePart() | SetSuspend() | RemoveSuspendNote() | NotePods() | SetTtl():
                return False  # status has the result already
            case _:
                assert_never(action)

    def _is_backing_off(self, action: Action, decided: Decided, key: ChainKey) -> bool:
        """Whether an action was refused a moment ago, so that nothing is requested now."""
        if isinstance(action, CreateJob):
            held = self._creator.backing_off(decided.plan, key) if decided.plan else frozenset()
            return action.job["metadata"]["name"] in held
        return not isinstance(action, CreatePart) and self._changer.is_backing_off(action, key)

    async def _carry_out(self, decided: Decided, key: ChainKey, tried: Sequence[TriedPod] = ()) -> float | None:
        document, plan, observed, previous, decision, _, _ = decided
        # Actions before status: if the operator is killed in between, the next reconcile finds the Job. A status that
        # was written first would name a Job that does not exist.
        status, retry_s = await self._act(decided, key, tried)
        # A Job that was refused leaves its place to the next chain, also if the status is refused.
        self._note(decided, status)
        self._underway.pop(key, None)
        written_s = await self._writer.write(document, key, previous, status)
        if plan is None:
            self._metrics.reconciled(key, status, pods=pods_now(observed))
            return retry_s if written_s is None else written_s
        pod = running_pod(plan, observed)
        since = pod.created_at if pod else None
        self._metrics.reconciled(key, status, runs_since=since, pods=pods_now(observed))
        if written_s is None and has_succeeded({**document, "status": status.to_document()}):
            self._finished.note(document)
            self._neighbours.forget(key)
        else:
            self._finished.forget(key)
        if written_s is not None:
            return written_s  # what else is due counts on what this status would have said
        # Progress is in the pod's log, and a new line there is no event.
        reads_progress = pod is not None and any(entry.phase == "Running" for entry in status.entries)
        # A request that could not be handled has to wait for the backoff of what was refused.
        is_handled = status.handled_retry == decision.status.handled_retry
        look_again_s = decision.look_again_s if is_handled else None
        due = (retry_s, look_again_s, self._settings.progress_s if reads_progress else None)
        return min((time_s for time_s in due if time_s is not None), default=None)

    def _forget(self, key: ChainKey) -> None:
        self._progress_read_at.pop(key, None)
        for memory in (
            self._creator,
            self._changer,
            self._metrics,
            self._finished,
            self._reader,
            self._writer,
            self.chains,
        ):
            memory.forget(key)

    def prune(self, existing: set[ChainKey]) -> None:
        """Keeps only what is needed of the chains that exist."""
        for key in self.chains.prune(existing):
            self._forget(key)

    async def _report_failure(
        self, document: dict[str, Any], key: ChainKey, previous: ChainStatus, error: Exception
    ) -> None:
        """Writes to status that the chain cannot be reconciled; the queue logs the error and tries again."""
        what = error.message if isinstance(error, ApiError) else f"{type(error).__name__}: {error}"
        problem = f"the operator cannot reconcile this chain and tries again: {what}; see the log of the operator"
        status = self._writer.with_problem(document, previous, problem, reason=RECONCILE_FAILED)
        with contextlib.suppress(ApiError):  # the first error is the cause
            await self._writer.write(document, key, previous, status)

    def _stop_if_invalid(
        self, document: dict[str, Any], observed: Observed, previous: ChainStatus, faults: list[str]
    ) -> Decision:
        """What to do about a chain whose spec is invalid. Running Jobs continue unless the spec says to suspend."""
        actions: list[Action] = []
        # Read from the document, because the spec as a whole could not be parsed.
        if document["spec"].get("suspend") is True:
            actions += stop_all(observed)
        else:
            running = [job for job in observed.jobs if not job.is_finished and not job.deleting]
            faults += [f"Job {job.name} keeps running; set spec.suspend: true to stop it" for job in running]
        generation = document["metadata"]["generation"]
        status = invalid_status(faults, generation=generation, previous=previous, now=self._clock())
        return Decision(tuple(actions), status)

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
        self, decided: Decided, key: ChainKey, tried: Sequence[TriedPod]
    ) -> tuple[ChainStatus, float | None]:
        """Performs the actions; the status is the decision's unless the API server did not accept an object."""
        document, plan, _, previous, decision, done, _ = decided
        status, retries_s = decision.status, []
        refusals: list[Refused] = []
        is_open = False
        leaving = {action.uid for action in decision.actions if isinstance(action, DeleteJob)}
        for action in decision.actions:
            match action:
                case CreateJob() | CreatePart():
                    assert plan is not None
                    changes, retry_s, is_new = await self._creator.create(action, plan, key, tried)
                    retries_s += [] if retry_s is None else [retry_s]
                    # Nothing else reports that the place of a Job that was refused is free.
                    retries_s += [SOON_S] if is_new and decision.has_more_starts else []
                    done += [] if changes else [action]
                    if changes and isinstance(action, CreateJob) and action.is_export:
                        changes = refused_export(plan, action.stage, changes)
                    if changes:
                        # The refusal changes phase and conditions of the chain too, so its status is built again.
                        entries = with_entry(status.entries, action.stage, **changes)
                        status = build_chain_status(plan, entries, previous=previous, now=self._clock())
                        # The time of a chain begins with a Job, unless stages of it are committed.
                        has_begun = status.phase != "Pending" or decision.status.started_at == previous.started_at
                        started_at = decision.status.started_at if has_begun else None
                        status = status.model_copy(update={"started_at": started_at})
                case SetSuspend() | RemoveSuspendNote() | NotePods() | SetTtl() if action.uid in leaving:
                    pass  # a Job that is deleted now must not run again before
                case DeleteJob() | SetSuspend() | RemoveSuspendNote() | NotePods() | SetTtl():
                    if (refused := await self._changer.change(action, key)) is None:
                        done.append(action)
                    else:
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
            status = self._writer.with_problem(
                document, status, refused.problem, reason=CHANGE_REFUSED, stalls=refused.stalls
            )
        return status, min(retries_s, default=None)
