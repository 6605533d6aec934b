"""Runs a work queue in a test."""

from __future__ import annotations

import asyncio

from distillchain_operator.queue import WorkQueue


async def run_until(queue: WorkQueue[str], done: asyncio.Event, *, workers: int = 4) -> None:
    """Until `done` is set; after ten seconds the test has failed."""
    worker = asyncio.create_task(queue.run(workers=workers))
    try:
        await asyncio.wait_for(done.wait(), timeout=10)
    finally:
        worker.cancel()
        await asyncio.gather(worker, return_exceptions=True)


def namespace_of(key: str) -> str:
    return key.partition("/")[0]
