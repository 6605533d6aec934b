"""The operator's HTTP endpoints, for the kubelet's probes and for Prometheus."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from aiohttp import web
from aiohttp.typedefs import Handler
from prometheus_client.aiohttp import make_aiohttp_handler

from distillchain_operator.metrics.operator_metrics import Metrics


@asynccontextmanager
async def serve(port: int, routes: dict[str, Handler]) -> AsyncIterator[None]:
    """Serves GET on the paths of `routes`, on all addresses, while the block runs; port 0: serves nothing."""
    if not port:
        yield
        return
    application = web.Application()
    for path, handler in routes.items():
        application.router.add_get(path, handler)
    # Probes and scrapes would fill the log.
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, port=port).start()
        yield
    finally:
        await runner.cleanup()


def probes(is_ready: Callable[[], bool]) -> dict[str, Handler]:
    """`/healthz`: the event loop runs. `/readyz`: chains can be listed, and this operator leads or is on standby."""

    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_: web.Request) -> web.Response:
        return web.Response(text="ok\n") if is_ready() else web.Response(text="not ready\n", status=503)

    return {"/healthz": healthz, "/readyz": readyz}


def metrics_page(metrics: Metrics) -> dict[str, Handler]:
    """`/metrics`."""
    return {"/metrics": make_aiohttp_handler(metrics.registry)}
