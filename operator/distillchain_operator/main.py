"""Runs the DistillationChains of a cluster until SIGTERM.

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
from typing import cast

from distillchain_operator.api_server.cluster import Cluster
from distillchain_operator.api_server.lease import Election, LeadershipLost, Timing, new_identity
from distillchain_operator.api_server.namespaces import Namespaces
from distillchain_operator.logs import configure_logging
from distillchain_operator.metrics.endpoints import metrics_page, probes, serve
from distillchain_operator.metrics.operator_metrics import Metrics
from distillchain_operator.reconciling import Reconciling
from distillchain_operator.settings import PREFIX, BadSetting, Settings, setting_names

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
        # Each list of objects starts the garbage collector, which then need not visit all imported modules: reading
        # JSON takes half the time.
        gc.freeze()
        return asyncio.run(_run(settings))
    except asyncio.CancelledError:  # stopped before it has led
        return 0
    except BadSetting as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_BAD_SETTINGS


async def _run(settings: Settings) -> int:
    # An operator that still waits for the API server or the Lease has nothing to finish.
    asyncio.get_running_loop().add_signal_handler(
        signal.SIGTERM, cast("asyncio.Task[int]", asyncio.current_task()).cancel
    )
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
            await Reconciling(cluster, settings, namespaces, metrics).run(election)
        except* LeadershipLost as lost:
            # Everything in memory may be outdated, so the kubelet starts a fresh process.
            log.critical("leadership lost", extra={"error": str(lost.exceptions[0])})
            exit_code = EXIT_LEADERSHIP_LOST
        log.info("operator stopped")
        return exit_code
