"""What the start of the operator costs when a cluster holds many finished chains.

    PYTHONPATH=tests python bench/operator_start.py                        # 1,000 and 2,500 chains of three stages
    PYTHONPATH=tests python bench/operator_start.py --chains 1000 --operator PATH     # and that of another checkout

Each chain has succeeded; its Jobs and pods are still there. The API server and etcd are real and share the machine with
the operator; the controllers are stopped, because they would only use its cores. Reported are the seconds until the
operator knows every chain, its CPU time, its memory, its requests, and how many of them wrote something. Add results to
bench/LOG.md with date, machine and command.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from operator_bench.api import Api, chains_path, connected, run_all
from operator_bench.process import CHECKOUT, install_crd, operator_of, total

from chain_builders import NOON, a_commit, a_document
from cluster.controlplane import ControlPlane
from distillchain_api.graph import PlannedStage, build_plan
from distillchain_api.resource.spec import DistillationChain, parse_chain
from distillchain_api.resource.status import ChainStatus, StageStatus
from distillchain_operator.jobs import NO_DEFAULTS, build_job, build_probe_pod
from distillchain_operator.status import build_chain_status, committed_entry, status_patch

STAGES = ("mini", "tiny", "femto")
NAMESPACES = 10
DEADLINE_S = 240
SETTLE_S = 5  # for what the operator does once it knows all chains


async def add_chain(api: Api, number: int) -> None:
    """A chain that has succeeded, with its finished Jobs and pods."""
    path = chains_path(f"team-{number % NAMESPACES}")
    document = await api.send("POST", path, a_document(f"relay-{number}", stages=STAGES))
    plan = build_plan(parse_chain(document, from_cluster=True))
    entries = [await _add_stage(api, plan.chain, stage) for stage in plan.stages]
    finished = build_chain_status(plan, entries, previous=ChainStatus(), now=datetime.now(UTC))
    await api.patch_status(f"{path}/relay-{number}", status_patch(finished))


async def _add_stage(api: Api, chain: DistillationChain, stage: PlannedStage) -> StageStatus:
    at = f"/namespaces/{chain.metadata.namespace}"
    job, answer = build_job(chain, stage, defaults=NO_DEFAULTS), a_commit(stage)
    name = job["metadata"]["name"]
    stored = await api.send("POST", f"/apis/batch/v1{at}/jobs", job)
    done = [{"type": kind, "status": "True", "lastTransitionTime": NOON} for kind in ("SuccessCriteriaMet", "Complete")]
    status = {"startTime": NOON, "completionTime": NOON, "succeeded": 1, "conditions": done}
    await api.patch_status(f"/apis/batch/v1{at}/jobs/{name}", status)
    pod = build_probe_pod(job)
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": name, "controller": True}
    pod["metadata"] |= {"name": f"{name}-p0", "ownerReferences": [owner | {"uid": stored["metadata"]["uid"]}]}
    await api.send("POST", f"/api/v1{at}/pods", pod)
    ended = {"exitCode": 0, "message": answer.to_json(), "finishedAt": NOON, "startedAt": NOON}
    container: dict[str, Any] = {"name": "trainer", "image": "x", "imageID": "", "ready": False, "restartCount": 0}
    container["state"] = {"terminated": ended}
    await api.patch_status(f"/api/v1{at}/pods/{name}-p0", {"phase": "Succeeded", "containerStatuses": [container]})
    created_at = stored["metadata"]["creationTimestamp"]
    return committed_entry(stage, answer, job=name, attempt=1, started_at=created_at, finished_at=NOON)


async def load(control_plane: ControlPlane, numbers: range) -> None:
    """Adds finished chains."""
    async with connected(control_plane) as api:
        await run_all(add_chain(api, number) for number in numbers)


def measure(checkout: Path, control_plane: ControlPlane, chains: int) -> dict[str, float]:
    """One start of an operator, until it knows all chains and has done its work."""
    started = time.monotonic()
    with operator_of(checkout, control_plane) as operator:
        known, page = 0.0, ""
        while known < chains or "\ndistillchain_queue_depth 0.0\n" not in page:
            if time.monotonic() - started > DEADLINE_S:
                raise SystemExit(f"after {DEADLINE_S} s the operator knows {known:.0f} of {chains} chains")
            time.sleep(0.2)
            page = operator.scrape()
            known = total(page, "distillchain_chains", label='phase="Succeeded"')
        elapsed_s = time.monotonic() - started
        time.sleep(SETTLE_S)
        page = operator.scrape()
        peak, now = operator.memory_mb()
        requests = "distillchain_api_requests_total"
        all_requests = total(page, requests)
        return {
            "seconds": elapsed_s,
            "CPU seconds": operator.cpu_s(),
            "peak MB": peak,
            "MB afterwards": now,
            "requests": all_requests,
            "writes": all_requests - total(page, requests, label='method="GET"'),
        }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chains", type=int, nargs="+", default=[1000, 2500], help="numbers of chains, ascending")
    parser.add_argument("--operator", type=Path, action="append", help="checkout whose operator is measured too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ControlPlane(Path(folder)) as control_plane:
        install_crd(control_plane)
        for number in range(NAMESPACES):
            control_plane.create_namespace(f"team-{number}")
        control_plane.processes.stop("kube-controller-manager", grace_s=0.5)
        loaded = 0
        for chains in options.chains:
            asyncio.run(load(control_plane, range(loaded, chains)))
            loaded = chains
            for checkout in [CHECKOUT, *(options.operator or [])]:
                found = measure(checkout, control_plane, chains)
                values = ", ".join(f"{name} {value:.1f}" for name, value in found.items())
                print(f"{chains} chains, operator of {checkout.name}: {values}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
