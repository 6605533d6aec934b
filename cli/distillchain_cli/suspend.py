"""Stopping a chain on a cluster, and letting it go on: one field of its spec."""

from __future__ import annotations

from distillchain_cli.cluster import Cluster
from distillchain_cli.program import program


def set_suspend(cluster: Cluster, name: str, *, suspend: bool) -> str:
    """Writes spec.suspend where it is not so already. Returns: what was done."""
    chain = cluster.fetch_chain(name)
    if bool(chain["spec"].get("suspend")) is suspend:
        return f"{name} is {'' if suspend else 'not '}suspended already; nothing was changed"
    cluster.set_suspend(chain, suspend)
    if suspend:
        return f"suspended {name}: its running stage saves its state and stops; to go on: {program()} resume {name}"
    return f"resumed {name}: it goes on from its saved state; to follow it: {program()} status {name} -w"
