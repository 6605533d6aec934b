"""`python -m distillchain_operator`: carries out the DistillationChains of a cluster until it is told to stop.

Settings come from DISTILLCHAIN_* variables (settings.py) or these arguments, the connection from $KUBECONFIG or the
service account.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import sys
from importlib.metadata import version
from typing import NoReturn

import kopf
from kopf._cogs.structs.references import Insights  # what kopf watches at present: an argument that it does not export

from distillchain_operator.cluster import COMPONENT, ApiError, Cluster
from distillchain_operator.controller import ChainKey, Controller
from distillchain_operator.endpoints import metrics_page, probes, serve
from distillchain_operator.handlers import build_kopf_settings, build_registry
from distillchain_operator.lease import Election, LeadershipLost, new_identity
from distillchain_operator.logs import configure_logging
from distillchain_operator.metrics import Metrics
from distillchain_operator.namespaces import follow_namespaces, list_chains, wait_for_chains
from distillchain_operator.queue import WorkQueue
from distillchain_operator.settings import PREFIX, BadSetting, Settings, setting_names

WORKERS = 8  # chains looked at at once; a look is some live reads
EXIT_BAD_SETTINGS = 2
EXIT_LEADERSHIP_LOST = 3

log = logging.getLogger("distillchain_operator")


def main(argv: list[str] | None = None) -> int:
    """Runs until SIGTERM or SIGINT; 2 for settings that cannot be used, 3 when another operator took over."""
    parser = argparse.ArgumentParser(prog="python -m distillchain_operator", description=__doc__, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"distillchain {version('distillchain')}")
    for name in setting_names():
        flag = f"--{name.lower().replace('_', '-')}"
        parser.add_argument(flag, dest=f"{PREFIX}{name}", metavar="VALUE", help=f"instead of {PREFIX}{name}")
    given = {name: value for name, value in vars(parser.parse_args(argv)).items() if value is not None}
    try:
        settings = Settings.from_environment({**os.environ, **given})
        configure_logging(settings)
        # Process 1 of a container gets only the signals that it handles, and kopf sets its handlers when it starts.
        signal.signal(signal.SIGTERM, _end)
        return asyncio.run(_run(settings))
    except BadSetting as error:
        print(error, file=sys.stderr)
        return EXIT_BAD_SETTINGS


def _end(*_: object) -> NoReturn:
    """Unwinds: an operator that still waits for the API server has nothing to finish."""
    raise SystemExit(0)


async def _run(settings: Settings) -> int:
    metrics = Metrics()
    async with contextlib.AsyncExitStack() as stack:
        cluster = await stack.enter_async_context(await Cluster.connect(answered=metrics.answered))
        election = None
        if settings.lease:
            election = Election(cluster, *settings.lease.split("/"), identity=new_identity())
        lists_chains = asyncio.Event()

        def is_ready() -> bool:
            return lists_chains.is_set() and (election is None or election.stands)

        await stack.enter_async_context(serve(settings.metrics_port, metrics_page(metrics)))
        await stack.enter_async_context(serve(settings.health_port, probes(is_ready)))
        await wait_for_chains(cluster, settings.namespaces)
        lists_chains.set()
        if election is not None:
            await election.acquire()
            stack.push_async_callback(election.release)
        metrics.leads()
        exit_code = 0
        try:
            await _work(cluster, settings, metrics, election)
        except* LeadershipLost as lost:
            # Nothing that is known here may be true any more; the kubelet starts a process that knows nothing.
            log.critical("leadership lost", extra={"error": str(lost.exceptions[0])})
            exit_code = EXIT_LEADERSHIP_LOST
        log.info("operator stopped")
        return exit_code


async def _work(cluster: Cluster, settings: Settings, metrics: Metrics, election: Election | None) -> None:
    """Carries out chains until SIGTERM or SIGINT, which kopf hears; an error of any part ends all of them."""
    queue: WorkQueue[ChainKey] = WorkQueue(metrics.timed(Controller(cluster, settings, metrics=metrics).look))
    metrics.queue_depth.set_function(lambda: queue.depth)
    metrics.queue_failing.set_function(lambda: queue.failing)
    readable = await wait_for_chains(cluster, settings.namespaces)  # anew: it may have stood by for long
    watched = Insights()
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(queue.run(workers=WORKERS)),
            group.create_task(_resync(cluster, queue, settings, metrics)),
            *([group.create_task(election.keep())] if election is not None else []),
        ]
        if settings.namespaces:
            tasks.append(group.create_task(follow_namespaces(cluster, settings.namespaces, watched)))
        log.info("operator started", extra={"namespaces": ",".join(settings.namespaces) or "all"})
        await kopf.operator(
            registry=build_registry(),
            settings=build_kopf_settings(),
            memo=kopf.Memo(queue=queue),
            standalone=True,
            # kopf would ask for the user's name, which a numeric user may not have.
            identity=COMPONENT,  # type: ignore[arg-type]  # a NewType of str that kopf does not export
            clusterwide=not settings.namespaces,
            namespaces=[namespace for namespace in readable if namespace],
            insights=watched,
        )
        for task in tasks:
            task.cancel()


async def _resync(cluster: Cluster, queue: WorkQueue[ChainKey], settings: Settings, metrics: Metrics) -> None:
    """Looks at every chain from time to time: what no event told is found then."""
    while True:
        await asyncio.sleep(settings.resync_s)
        with contextlib.suppress(ApiError):  # the next round is soon enough
            chains = await list_chains(cluster, settings.namespaces)
            keys = [ChainKey(chain["metadata"]["namespace"], chain["metadata"]["name"]) for chain in chains]
            for key in keys:
                queue.add(key)
            metrics.resynced(keys)


if __name__ == "__main__":
    sys.exit(main())
