"""The periodic look at all unfinished chains, without a list of them: the watches know which chains exist."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from distillchain_operator.chain_key import ChainKey
from distillchain_operator.watch.existing import ExistingChains


async def resync_every(
    seconds: float,
    existing: Callable[[], ExistingChains | None],
    *,
    look: Callable[[ChainKey], None],
    keep: Callable[[set[ChainKey], bool], None],
) -> None:
    """Until it is cancelled.

    Args:
        seconds: between two looks at the same chain.
        look: called with each chain, except those of namespaces whose watch does not work: they would have to be read.
        keep: called before with all chains that exist, and whether all watches work.
    """
    pause_s = seconds
    while True:
        await asyncio.sleep(pause_s)
        pause_s = seconds
        if (chains := existing()) is None or (keys := chains.keys()) is None:
            continue  # the next resync is soon enough
        keep(keys, not chains.silent())
        # One after the other, until the next resync: a thousand looks at once would delay those that are urgent.
        for key in keys:
            if chains.silent().isdisjoint((None, key.namespace)):
                look(key)
            await asyncio.sleep(seconds / len(keys))
            pause_s = 0
