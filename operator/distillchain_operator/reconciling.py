"""All parts of a leading operator, and what each tells the others."""

from __future__ import annotations

import asyncio
import logging
import signal
from typing import Any

from distillchain_operator.api_server.cluster import Cluster
from distillchain_operator.api_server.lease import Election
from distillchain_operator.api_server.namespaces import Namespaces
from distillchain_operator.caches.children import Children
from distillchain_operator.caches.claims import Concerned
from distillchain_operator.caches.finished import FinishedChains
from distillchain_operator.caches.neighbours import Neighbours
from distillchain_operator.chain_key import ChainKey
from distillchain_operator.controller.controller import Controller
from distillchain_operator.controller.events import Events
from distillchain_operator.metrics.operator_metrics import Metrics
from distillchain_operator.settings import Settings
from distillchain_operator.watch.child_watch import ChildWatch
from distillchain_operator.watch.first_list import note_finished
from distillchain_operator.watch.queue import Urgency, WorkQueue
from distillchain_operator.watch.resync import resync_every
from distillchain_operator.watch.watching import ChainWatches, Reports

PLACES = 16  # chains reconciled at the same time, those included whose requests wait for slow webhooks
# Of the others: more requests at once only make the API server, the Job controller and so each request slower.
AT_ONCE = 8

log = logging.getLogger("distillchain_operator")


class Reconciling:
    """Watches the chains with their Jobs and pods, and looks at each that may have changed."""

    def __init__(self, cluster: Cluster, settings: Settings, namespaces: Namespaces, metrics: Metrics) -> None:
        self._cluster = cluster
        self._settings = settings
        self._namespaces = namespaces
        self._metrics = metrics
        self._finished = FinishedChains()
        self._children = Children(self._finished)
        self._events = Events(cluster)
        self._neighbours = Neighbours(settings.max_running_chains, is_complete=False, children=self._children)
        self._controller = Controller(
            cluster,
            settings,
            clock=cluster.now,
            metrics=metrics,
            finished=self._finished,
            children=self._children,
            neighbours=self._neighbours,
            events=self._events,
            give_way=self._give_way,
        )
        self._queue: WorkQueue[ChainKey] = WorkQueue(
            metrics.timed(self._controller.reconcile), group_of=lambda key: key.namespace, at_once=AT_ONCE
        )
        self._watches = ChainWatches(
            namespaces,
            reports=Reports(changed=self._chain_changed, listed=self._chain_listed),
            finished=self._finished,
            child_watch=ChildWatch(cluster, self._children, report=self._child_changed),
        )
        metrics.queue_depth.set_function(lambda: self._queue.depth)
        metrics.queue_failing.set_function(lambda: self._queue.failing)
        cluster.report_written_jobs(self._job_written)
        self._neighbours.report_to(self._neighbour_changed, unreadable=namespaces.note_refused)

    async def run(self, election: Election | None) -> None:
        """Works until SIGTERM or SIGINT; an error in any task ends all of them.

        Args:
            election: what keeps the Lease; None: there is none.

        Raises: ExceptionGroup, as with LeadershipLost.
        """
        loop, stops = asyncio.get_running_loop(), asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stops.set)
        works = [
            self._queue.run(places=PLACES),
            resync_every(
                self._settings.resync_s, lambda: self._watches.existing, look=self._look_later, keep=self._forget_others
            ),
            self._events.run(),
            self._watch(),
        ]
        if election is not None:
            works.append(election.keep())
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(work) for work in works]
            log.info("operator started", extra={"namespaces": ",".join(self._settings.namespaces) or "all"})
            await stops.wait()
            for task in tasks:
                task.cancel()

    async def _watch(self) -> None:
        await self._namespaces.check()  # the operator may have been on standby for long
        # First, because the first lists of the watches would report each of them.
        await note_finished(
            self._cluster,
            self._namespaces.readable,
            finished=self._finished,
            metrics=self._metrics,
            neighbours=self._neighbours,
        )
        await self._watches.run()

    async def _give_way(self, key: ChainKey) -> None:
        """Lets the Jobs that idle GPUs wait for come before the status of this chain."""
        await self._queue.give_way(key)

    def _chain_changed(self, key: ChainKey, version: int) -> None:
        if self._controller.chains.report(key, version):
            self._queue.add(key)

    def _chain_listed(self, key: ChainKey, version: int) -> None:
        """A list does not say whether a chain has changed: those that have are looked at before it."""
        self._controller.chains.listed(key, version)
        self._queue.add(key, Urgency.LATER)

    def _child_changed(self, key: ChainKey, urgency: Urgency = Urgency.NOW) -> None:
        """A Job or pod of the chain was reported."""
        self._controller.chains.report(key, None)
        self._queue.add(key, urgency)

    def _job_written(self, job: dict[str, Any]) -> None:
        if key := self._children.job_written(job):
            self._child_changed(key)

    def _neighbour_changed(self, chain: Concerned) -> None:
        self._child_changed(chain.key, Urgency.FIRST if chain.may_start else Urgency.NOW)

    def _look_later(self, key: ChainKey) -> None:
        """Looks at a chain although nothing was reported, after those that have changed."""
        if key not in self._finished:
            self._child_changed(key, Urgency.LATER)

    def _forget_others(self, keys: set[ChainKey], is_complete: bool) -> None:
        """Keeps only what is needed of the chains that exist."""
        self._metrics.resynced(keys, is_complete=is_complete)
        for memory in (self._finished.keep, self._controller.prune, self._children.prune, self._neighbours.check):
            memory(keys)
