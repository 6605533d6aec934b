"""The time between two stages, and what the operator costs, on a real control plane with a kubelet that only writes.

    PYTHONPATH=tests python bench/operator_gap.py                                # 1 chain, and 200 at the same time
    PYTHONPATH=tests python bench/operator_gap.py --operator PATH                # and those of another checkout
    PYTHONPATH=tests python bench/operator_gap.py --chains 2000 --running 200 --stages 3   # the others are in line

etcd, API server and Job controller are real and share the machine with the operator. The kubelet of this program sets
each pod to Running, and after its work to Succeeded with the answer of a trainer. A gap is the time from that write to
the creation of the pod of the next stage, as a watch reports it, so it contains the work of the Job controller.
`to Job` is the part of it until the creation of the Job. `after completion` is the time from the completion of a Job to
the creation of the next one; it is negative if the operator does not wait for the completion.

The chains are created at random moments within the work of a stage; with `--running`, five in a second. The API server
counts the requests. The medians are compared with bench/operator_limits.toml; the exit code is 1 if one exceeds its
limit. Add results to bench/LOG.md with date, machine and command.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from operator_bench.api import Api, chains_path, connected
from operator_bench.limits import Measured
from operator_bench.process import CHECKOUT, install_crd, load, operator_of

from chain_builders import a_chain, a_commit, a_document, own_store
from cluster.controlplane import ControlPlane
from distillchain_api.graph import build_plan
from distillchain_operator.jobs.labels import CHAIN_LABEL, STAGE_LABEL

NAMESPACES = 5
START_S = 0.2  # from the creation of a pod to its start
DEADLINE_S = 200  # beyond the work of all stages
CREATED_A_SECOND = 5  # with a limit of running chains; the others are created within the work of one stage
# What only the operator asks for: the Job controller writes the status of Jobs, creates pods and sends other Events.
OF_OPERATOR = (
    # This program creates chains.
    {"resource": "distillationchains", "verb": "GET"},
    {"resource": "distillationchains", "verb": "PATCH"},
    {"resource": "jobs", "verb": "LIST"},
    {"resource": "jobs", "verb": "POST"},
    {"resource": "jobs", "verb": "PATCH"},
    {"resource": "jobs", "verb": "DELETE"},
    {"resource": "pods", "verb": "LIST"},
    {"resource": "pods", "subresource": "log"},
    {"resource": "pods", "dry_run": "All"},
    {"resource": "events", "group": "events.k8s.io"},
)


class Kubelet:
    """Starts and ends the pods of chains, and measures the time between them."""

    def __init__(self, api: Api, prefix: str, stages: list[str], *, work_s: float) -> None:
        self._api, self._prefix, self._stages, self._work_s = api, prefix, stages, work_s
        plan = build_plan(a_chain(stages=stages))
        # Names of chains are not part of a digest, so the answers are the same for all.
        self._answers = {stage.name: a_commit(stage).to_json() for stage in plan.stages}
        self._ended_at: dict[tuple[str, str], float] = {}
        self._created_at: dict[tuple[str, str], float] = {}  # of Jobs
        self._completed_at: dict[tuple[str, str], float] = {}
        self._seen: set[str] = set()
        self.gaps: list[float] = []
        self._left: set[str] = set()  # chains whose last stage has not ended
        self.all_ended = asyncio.Event()

    def expect(self, chains: Iterable[str]) -> None:
        """The chains that `all_ended` waits for."""
        self._left.update(chains)

    def to_job(self) -> list[float]:
        """The times from the end of a pod to the creation of the Job of the next stage."""
        return self._before_jobs(self._ended_at)

    def after_completion(self) -> list[float]:
        """The times from the completion of a Job to the creation of the next."""
        return self._before_jobs(self._completed_at)

    def _before_jobs(self, moments: dict[tuple[str, str], float]) -> list[float]:
        following = dict(itertools.pairwise(self._stages))
        return [
            self._created_at[chain, following[stage]] - at
            for (chain, stage), at in moments.items()
            if stage in following
        ]

    async def watch_jobs(self) -> None:
        """Until it is cancelled."""
        async for event in self._api.watch("/apis/batch/v1/jobs"):
            labels, now = event["object"]["metadata"].get("labels", {}), time.monotonic()
            if not labels.get(CHAIN_LABEL, "").startswith(f"{self._prefix}-"):
                continue
            place = labels[CHAIN_LABEL], labels[STAGE_LABEL]
            self._created_at.setdefault(place, now)
            if event["object"].get("status", {}).get("completionTime"):
                self._completed_at.setdefault(place, now)

    async def run(self) -> None:
        """Until it is cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.watch_jobs())
            async for event in self._api.watch("/api/v1/pods"):
                metadata, now = event["object"]["metadata"], time.monotonic()
                chain = metadata.get("labels", {}).get(CHAIN_LABEL, "")
                # Pods of earlier runs are still there.
                if metadata["uid"] in self._seen or not chain.startswith(f"{self._prefix}-"):
                    continue
                self._seen.add(metadata["uid"])
                stage = metadata["labels"][STAGE_LABEL]
                if place := self._stages.index(stage):
                    self.gaps.append(now - self._ended_at[chain, self._stages[place - 1]])
                group.create_task(self._work(metadata, chain, stage))

    async def _work(self, metadata: dict[str, Any], chain: str, stage: str) -> None:
        path = f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}"
        await asyncio.sleep(START_S)
        await self._api.patch_status(path, _status("Running", {"running": {"startedAt": _now()}}))
        await asyncio.sleep(self._work_s)
        end = {"exitCode": 0, "message": self._answers[stage], "startedAt": _now(), "finishedAt": _now()}
        self._ended_at[chain, stage] = time.monotonic()
        await self._api.patch_status(path, _status("Succeeded", {"terminated": end}))
        if stage == self._stages[-1]:
            self._left.discard(chain)
            if not self._left:
                self.all_ended.set()


def _status(phase: str, state: dict[str, Any]) -> dict[str, Any]:
    container = {"name": "trainer", "image": "x", "imageID": "", "ready": False, "restartCount": 0, "state": state}
    return {"phase": phase, "containerStatuses": [container]}


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


async def run_chains(
    control_plane: ControlPlane, prefix: str, chains: int, *, stages: int, work_s: float, running: int
) -> dict[str, float]:
    """Runs chains to their end and returns the gaps and requests.

    Args:
        running: chains that the operator lets run at the same time.
    """
    names = [f"stage-{number}" for number in range(stages)]
    random.seed(0)
    async with connected(control_plane) as api:
        kubelet = Kubelet(api, prefix, names, work_s=work_s)
        pods = asyncio.create_task(kubelet.run())
        before = await _requests(api)

        async def start(number: int) -> None:
            span_s = max(work_s, chains / CREATED_A_SECOND) if running < chains else work_s
            await asyncio.sleep(random.uniform(0, span_s) if chains > 1 else 0)
            document = a_document(f"{prefix}-{number}", stages=names, storage=own_store(f"{prefix}-{number}"))
            await api.send("POST", chains_path(f"team-{number % NAMESPACES}"), document)

        starting = asyncio.gather(*map(start, range(chains)))
        kubelet.expect(f"{prefix}-{number}" for number in range(chains))
        ending = asyncio.create_task(_wait_until_succeeded(api, prefix, kubelet.all_ended))
        async with asyncio.timeout(DEADLINE_S + 2 * work_s * stages * chains / running):
            await asyncio.wait((pods, ending), return_when=asyncio.FIRST_COMPLETED)
            if pods.done():
                await pods  # it has failed
            await starting
        requests, writes = (now - then for now, then in zip(await _requests(api), before, strict=True))
        pods.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await pods
    count = chains * stages
    assert len(kubelet.gaps) == count - chains, "a stage had two pods"
    p50, p99 = statistics.median(kubelet.gaps), sorted(kubelet.gaps)[int(len(kubelet.gaps) * 0.99)]
    return {
        "gap p50 s": p50,
        "gap p99 s": p99,
        "to Job p50 s": statistics.median(kubelet.to_job()),
        "after completion p50 s": statistics.median(kubelet.after_completion()),
        "requests a stage": requests / count,
        "status writes a stage": writes / count,
    }


async def _requests(api: Api) -> tuple[float, float]:
    """The operator's requests so far, without watches, and how many of them wrote the status of a chain."""
    operators = [
        (labels, count)
        for labels, count in await api.count_requests()
        if any(kind.items() <= labels.items() for kind in OF_OPERATOR)
    ]
    status = {"resource": "distillationchains", "subresource": "status"}
    return sum(c for _, c in operators), sum(c for labels, c in operators if status.items() <= labels.items())


async def _wait_until_succeeded(api: Api, prefix: str, all_ended: asyncio.Event) -> None:
    await all_ended.wait()
    # A watch of all chains would cost the API server as much as a further operator.
    while True:
        chains = (await api.get("/apis/distillchain.io/v1alpha1/distillationchains"))["items"]
        own = [chain for chain in chains if chain["metadata"]["name"].startswith(f"{prefix}-")]
        if all(chain.get("status", {}).get("phase") == "Succeeded" for chain in own):
            return
        await asyncio.sleep(1)


def runs(options: argparse.Namespace) -> Iterator[tuple[str, Path, int, int]]:
    """Prefix, checkout, chains and stages of each run; the checkouts take turns."""
    for number in range(options.repeat):
        for chains in options.chains:
            for checkout in [CHECKOUT, *(options.operator or [])]:
                # One chain has more stages, so that there are enough gaps.
                stages = options.stages * 4 if chains == 1 else options.stages
                yield f"{checkout.name}-{chains}-{number}", checkout, chains, stages


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chains", type=int, nargs="+", default=[1, 200], help="chains at the same time")
    parser.add_argument("--running", type=int, help="chains that run at the same time; all, if not stated")
    parser.add_argument("--stages", type=int, default=4, help="of each chain; one chain alone has four times as many")
    parser.add_argument("--work", type=float, default=15, help="seconds that a stage trains; 1 for a chain alone")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each operator")
    parser.add_argument("--operator", type=Path, action="append", help="checkout whose operator is measured too")
    options = parser.parse_args()
    measured = Measured()
    with tempfile.TemporaryDirectory() as folder, ControlPlane(Path(folder)) as control_plane:
        install_crd(control_plane)
        control_plane.restart_controllers()  # or the garbage collector would read each chain, which is counted
        for number in range(NAMESPACES):
            control_plane.create_namespace(f"team-{number}")
        for prefix, checkout, chains, stages in runs(options):
            running = min(options.running or chains, chains)
            limit = running // NAMESPACES if running < chains else 0
            with operator_of(checkout, control_plane, {"DISTILLCHAIN_MAX_RUNNING_CHAINS": str(limit)}) as operator:
                work_s = 1 if chains == 1 else options.work
                run = run_chains(control_plane, prefix, chains, stages=stages, work_s=work_s, running=running)
                found = asyncio.run(run)
                found |= {"CPU s": operator.cpu_s(), "peak MB": operator.memory_mb()[0]}
            if checkout == CHECKOUT:
                measured.add(f"gap-{chains}", found)
            values = ", ".join(f"{name} {value:.2f}" for name, value in found.items())
            print(f"{chains} chains, {checkout.name}: {values}, load {load()}", flush=True)
    table, is_within = measured.compare()
    print(table)
    return 0 if is_within else 1


if __name__ == "__main__":
    sys.exit(main())
