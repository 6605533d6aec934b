"""`python -m distillchain_operator`: runs the DistillationChains of a cluster until SIGTERM.

Settings come from DISTILLCHAIN_* variables (settings.py) or these arguments, the connection from $KUBECONFIG or the
service account.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import logging
import os
import signal
import sys
from importlib.metadata import version
from typing import Any, NoReturn

from distillchain_operator.chain_key import ChainKey
from distillchain_operator.child_watch import ChildWatch
from distillchain_operator.children import Children
from distillchain_operator.cluster import Cluster
from distillchain_operator.controller import Controller
from distillchain_operator.endpoints import metrics_page, probes, serve
from distillchain_operator.events import Events
from distillchain_operator.finished import FinishedChains
from distillchain_operator.first_list import note_finished
from distillchain_operator.lease import Election, LeadershipLost, Timing, new_identity
from distillchain_operator.logs import configure_logging
from distillchain_operator.metrics import Metrics
from distillchain_operator.namespaces import Namespaces
from distillchain_operator.neighbours import Neighbours
from distillchain_operator.queue import Urgency, WorkQueue
from distillchain_operator.resync import resync_every
from distillchain_operator.settings import PREFIX, BadSetting, Settings, setting_names
from distillchain_operator.watching import ChainWatches, Reports

WORKERS = 16  # chains reconciled at the same time, those included whose requests wait for slow webhooks
# Of the others: more requests at once only make the API server, the Job controller and so each request slower.
AT_ONCE = 8
EXIT_BAD_SETTINGS = 2
EXIT_LEADERSHIP_LOST = 3

log = logging.getLogger("distillchain_operator")


def main(argv: list[str] | None = None) -> int:
    """Runs until SIGTERM or SIGINT; returns 2 for invalid settings and 3 when another operator took over."""
    parser = argparse.ArgumentParser(prog="python -m distillchain_operator", description=__doc__, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"distillchain {version('distillchain')}")
    for name in setting_names():
        flag = f"--{name.lower().replace('_', '-')}"
        parser.add_argument(flag, dest=f"{PREFIX}{name}", metavar="VALUE", help=f"instead of {PREFIX}{name}")
    given = {name: value for name, value in vars(parser.parse_args(argv)).items() if value is not None}
    try:
        settings = Settings.from_environment({**os.environ, **given})
        configure_logging(settings)
        # Process 1 of a container receives only signals that it handles, and the event loop handles it later.
        signal.signal(signal.SIGTERM, _exit)
        # Each list of objects starts the garbage collector, which then need not visit all imported modules: reading
        # JSON takes half the time.
        gc.freeze()
        return asyncio.run(_run(settings))
    except BadSetting as error:
        print(error, file=sys.stderr)
        return EXIT_BAD_SETTINGS


def _exit(*_: object) -> NoReturn:
    """Exits at once: an operator that still waits for the API server has nothing to finish."""
    raise SystemExit(0)


async def _run(settings: Settings) -> int:
    metrics = Metrics()
    async with contextlib.AsyncExitStack() as stack:
        cluster = await stack.enter_async_context(await Cluster.connect(answered=metrics.answered))
        election = None
        if settings.lease:
            timing = Timing(settings.lease_duration_s, settings.lease_deadline_s, settings.lease_retry_s)
            election = Election(cluster, *settings.lease.split("/"), identity=new_identity(), timing=timing)
        lists_chains = asyncio.Event()

        def is_ready() -> bool:
            return lists_chains.is_set() and (election is None or election.is_candidate)

        await stack.enter_async_context(serve(settings.metrics_port, metrics_page(metrics)))
        await stack.enter_async_context(serve(settings.health_port, probes(is_ready)))
        namespaces = Namespaces(cluster, settings.namespaces)
        await namespaces.wait()
        lists_chains.set()
        if election is not None:
            await election.acquire()
            # Registered last, so it runs before the connection is closed, and only in an operator that has led.
            stack.push_async_callback(election.release)
        metrics.leads()
        exit_code = 0
        try:
            await _reconcile_all(cluster, settings, namespaces, metrics, election)
        except* LeadershipLost as lost:
            # Everything in memory may be outdated, so the kubelet starts a fresh process.
            log.critical("leadership lost", extra={"error": str(lost.exceptions[0])})
            exit_code = EXIT_LEADERSHIP_LOST
        log.info("operator stopped")
        return exit_code


async def _reconcile_all(
    cluster: Cluster, settings: Settings, namespaces: Namespaces, metrics: Metrics, election: Election | None
) -> None:
    """Reconciles chains until SIGTERM or SIGINT; an error in any task ends all of them."""
    loop, stops = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stops.set)
    finished = FinishedChains()
    children = Children(finished)
    neighbours = Neighbours(settings.max_running_chains, is_complete=False, children=children)
    events = Events(cluster)

    async def give_way(key: ChainKey) -> None:
        """The status of a chain is written after the Jobs for which GPUs wait."""
        await queue.give_way(key)

    controller = Controller(
        cluster,
        settings,
        metrics=metrics,
        finished=finished,
        children=children,
        neighbours=neighbours,
        events=events,
        give_way=give_way,
    )
    queue: WorkQueue[ChainKey] = WorkQueue(
        metrics.timed(controller.reconcile), group_of=lambda key: key.namespace, at_once=AT_ONCE
    )
    metrics.queue_depth.set_function(lambda: queue.depth)
    metrics.queue_failing.set_function(lambda: queue.failing)

    def report(key: ChainKey, version: int) -> None:
        """Adds the key of a chain that a watch reports."""
        if controller.chains.report(key, version):
            queue.add(key)

    def report_child(key: ChainKey, urgency: Urgency = Urgency.NOW) -> None:
        """Adds the key of a chain of which a Job or pod was reported, or the turn has come."""
        controller.chains.report(key, None)
        queue.add(key, urgency)

    def take_written(job: dict[str, Any]) -> None:
        if key := children.job_written(job):
            report_child(key)

    def report_listed(key: ChainKey, version: int) -> None:
        """Looks at a chain of a list, which does not say whether it has changed, after those that have."""
        controller.chains.listed(key, version)
        queue.add(key, Urgency.LATER)

    def look_later(key: ChainKey) -> None:
        """Looks at a chain although nothing was reported, after those that have changed."""
        if key not in finished:
            controller.chains.report(key, None)
            queue.add(key, Urgency.LATER)

    cluster.report_written_jobs(take_written)
    neighbours.report_to(lambda key: report_child(key, Urgency.FIRST), unreadable=namespaces.note_refused)
    watches = ChainWatches(
        namespaces,
        reports=Reports(changed=report, listed=report_listed),
        finished=finished,
        child_watch=ChildWatch(cluster, children, report=report_child),
    )

    async def watch() -> None:
        await namespaces.check()  # the operator may have been on standby for long
        # First, because the first lists of the watches would report each of them.
        await note_finished(cluster, namespaces.readable, finished=finished, metrics=metrics, neighbours=neighbours)
        await watches.run()

    def forget_others(keys: set[ChainKey], is_complete: bool) -> None:
        """Keeps only what is needed of the chains that exist."""
        metrics.resynced(keys, is_complete=is_complete)
        for memory in (finished.keep, controller.prune, children.prune, neighbours.check):
            memory(keys)

    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(queue.run(workers=WORKERS)),
            group.create_task(
                resync_every(settings.resync_s, lambda: watches.existing, look=look_later, keep=forget_others)
            ),
            group.create_task(events.run()),
            group.create_task(watch()),
            *([group.create_task(election.keep())] if election is not None else []),
        ]
        log.info("operator started", extra={"namespaces": ",".join(settings.namespaces) or "all"})
        await stops.wait()
        for task in tasks:
            task.cancel()


if __name__ == "__main__":
    sys.exit(main())
