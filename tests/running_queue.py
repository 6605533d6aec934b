"""Runs a work queue in a test."""

from __future__ import annotations

import asyncio

from distillchain_operator.watch.queue import WorkQueue


async def run_until(queue: WorkQueue[str], done: asyncio.Event, *, places: int = 4) -> None:
    """Until `done` is set; after ten seconds the test has failed."""
    running = asyncio.create_task(queue.run(places=places))
    try:
        await asyncio.wait_for(done.wait(), timeout=10)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def namespace_of(key: str) -> str:
    return key.partition("/")[0]
