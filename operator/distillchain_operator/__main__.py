"""`python -m distillchain_operator`: carries out the DistillationChains of a cluster until it is told to stop.

Settings come from DISTILLCHAIN_* variables (settings.py), the connection from $KUBECONFIG or the service account.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import signal
import sys
from importlib.metadata import version
from typing import NoReturn

import kopf

from distillchain_operator.cluster import COMPONENT, ApiError, Cluster
from distillchain_operator.controller import ChainKey, Controller
from distillchain_operator.handlers import build_kopf_settings, build_registry
from distillchain_operator.logs import configure_logging
from distillchain_operator.metrics import Metrics, serve
from distillchain_operator.queue import WorkQueue
from distillchain_operator.settings import BadSetting, Settings

WORKERS = 8  # chains looked at at once; a look is some live reads
CONNECT_RETRY_S = 2.0
EXIT_BAD_SETTINGS = 2

log = logging.getLogger("distillchain_operator")


def main(argv: list[str] | None = None) -> int:
    """Runs until SIGTERM or SIGINT; 2 for settings that cannot be used."""
    parser = argparse.ArgumentParser(prog="python -m distillchain_operator", description=__doc__)
    parser.add_argument("--version", action="version", version=f"distillchain {version('distillchain')}")
    parser.parse_args(argv)
    try:
        settings = Settings.from_environment()
    except BadSetting as error:
        print(error, file=sys.stderr)
        return EXIT_BAD_SETTINGS
    configure_logging(settings)
    # Process 1 of a container gets only the signals that it handles, and kopf sets its handlers when it starts.
    signal.signal(signal.SIGTERM, _end)
    asyncio.run(_run(settings))
    return 0


def _end(*_: object) -> NoReturn:
    """Unwinds: an operator that still waits for the API server has nothing to finish."""
    raise SystemExit(0)


async def _run(settings: Settings) -> None:
    metrics = Metrics()
    async with await Cluster.connect(answered=metrics.answered) as cluster, serve(metrics, settings.metrics_port):
        await _wait_for_chains(cluster, settings)
        queue: WorkQueue[ChainKey] = WorkQueue(metrics.timed(Controller(cluster, settings, metrics=metrics).look))
        metrics.queue_depth.set_function(lambda: queue.depth)
        metrics.queue_failing.set_function(lambda: queue.failing)
        work = [
            asyncio.create_task(queue.run(workers=WORKERS)),
            asyncio.create_task(_resync(cluster, queue, settings, metrics)),
        ]
        port = settings.liveness_port
        log.info("operator started", extra={"namespaces": ",".join(settings.namespaces) or "all"})
        try:
            await kopf.operator(
                registry=build_registry(),
                settings=build_kopf_settings(),
                memo=kopf.Memo(queue=queue),
                standalone=True,
                # kopf would ask for the user's name, which a numeric user may not have.
                identity=COMPONENT,  # type: ignore[arg-type]  # a NewType of str that kopf does not export
                clusterwide=not settings.namespaces,
                namespaces=settings.namespaces,
                liveness_endpoint=f"http://0.0.0.0:{port}/healthz" if port else None,
            )
        finally:
            for task in work:
                task.cancel()
            await asyncio.gather(*work, return_exceptions=True)
            log.info("operator stopped")


async def _wait_for_chains(cluster: Cluster, settings: Settings) -> None:
    """Returns when chains can be listed: kopf, without the right to watch CRDs, looks for the kind only once."""
    while True:
        try:
            for namespace in settings.namespaces or (None,):
                await cluster.list_chains(namespace)
        except ApiError as error:
            log.warning("waiting for the API server and the CRD", extra={"status": error.status, "error": str(error)})
            await asyncio.sleep(CONNECT_RETRY_S)
        else:
            return


async def _resync(cluster: Cluster, queue: WorkQueue[ChainKey], settings: Settings, metrics: Metrics) -> None:
    """Looks at every chain from time to time: what no event told is found then."""
    while True:
        await asyncio.sleep(settings.resync_s)
        keys: list[ChainKey] = []
        with contextlib.suppress(ApiError):  # the next round is soon enough
            for namespace in settings.namespaces or (None,):
                for chain in await cluster.list_chains(namespace):
                    keys.append(ChainKey(chain["metadata"]["namespace"], chain["metadata"]["name"]))
                    queue.add(keys[-1])
            metrics.resynced(keys)


if __name__ == "__main__":
    sys.exit(main())
