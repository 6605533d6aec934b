"""Suspend and resume a chain on a cluster by writing one field of its spec."""

from __future__ import annotations

from distillchain_cli.api_server.cluster import Cluster
from distillchain_cli.program import program_name


def set_suspend(cluster: Cluster, name: str, *, suspend: bool) -> str:
    """Writes spec.suspend unless it already has this value. Returns: a sentence about the change."""
    chain = cluster.fetch_chain(name)
    if bool(chain["spec"].get("suspend")) is suspend:
        return f"{name} is already suspended" if suspend else f"{name} is not suspended"
    cluster.set_suspend(chain, suspend)
    # From the raw status: suspending must work on a chain whose status another release wrote.
    phases = {stage.get("phase") for stage in (chain.get("status") or {}).get("stages") or []}
    if suspend:
        effect = "the running stage saves its state and stops" if "Running" in phases else "no stage is running"
        return f"suspended {name}: {effect}; to continue: {program_name()} resume {name}"
    effect = ": it continues from its saved state" if "Suspended" in phases else ""
    return f"resumed {name}{effect}; to follow it: {program_name()} status {name} -w"
