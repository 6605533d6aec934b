"""The periodic look at all unfinished chains, without a list of them: the watches know which chains exist."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from distillchain_operator.chain_key import ChainKey
from distillchain_operator.existing import ExistingChains


async def resync_every(
    seconds: float,
    existing: Callable[[], ExistingChains | None],
    *,
    look: Callable[[ChainKey], None],
    keep: Callable[[set[ChainKey], bool], None],
) -> None:
    """Until it is cancelled.

    Args:
        look: called with each chain, except those of namespaces whose watch does not work: they would have to be read.
        keep: called with all chains that exist, and whether all watches work.
    """
    while True:
        await asyncio.sleep(seconds)
        if (chains := existing()) is None or (keys := chains.keys()) is None:
            continue  # the next resync is soon enough
        silent = chains.silent()
        for key in keys:
            if silent.isdisjoint((None, key.namespace)):
                look(key)
        keep(keys, not silent)
