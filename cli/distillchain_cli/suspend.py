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
    phases = {stage.get("phase") for stage in (chain.get("status") or {}).get("stages") or []}
    if suspend:
        what = "its running stage saves its state and stops" if "Running" in phases else "none of its stages runs"
        return f"suspended {name}: {what}; to go on: {program()} resume {name}"
    what = ": it goes on from its saved state" if "Suspended" in phases else ""
    return f"resumed {name}{what}; to follow it: {program()} status {name} -w"
