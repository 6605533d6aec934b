"""What finished chains cost the operator: when it starts, and when it is idle.

    PYTHONPATH=tests python bench/operator_start.py                      # 1,000, 2,500 and 5,000 chains of three stages
    PYTHONPATH=tests python bench/operator_start.py --chains 1000 --operator PATH     # and that of another checkout
    PYTHONPATH=tests python bench/operator_start.py --chains 1000 --idle 60           # and its requests in 60 s

Each chain has succeeded; its Jobs and pods are still there. The API server and etcd are real and share the machine with
the operator; the controllers are stopped, because they would only use its cores. Reported are the seconds until the
operator knows every chain, its CPU time, its memory, its requests, and how many of them wrote something. The idle
operator has a Lease, ten suspended chains, and a look at all of them every 20 s; the API server counts its requests,
without watches. The medians are compared with
bench/operator_limits.toml; the exit code is 1 if one exceeds its limit. Add results to bench/LOG.md with date, machine
and command.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from operator_bench.api import chains_path, connected
from operator_bench.finished import MODEL, STAGES, add_copies, create_model
from operator_bench.limits import Measured
from operator_bench.process import CHECKOUT, Operator, install_crd, load, operator_of, total

from chain_builders import a_document
from cluster.controlplane import ControlPlane

NAMESPACES = 10
SUSPENDED = 10
DEADLINE_S = 240
SETTLE_S = 5  # for what the operator does once it knows all chains
LEASE = {"DISTILLCHAIN_LEASE": "team-0/distillchain", "DISTILLCHAIN_RESYNC_S": "20"}
OF_SOME = LEASE | {"DISTILLCHAIN_NAMESPACES": ",".join(f"team-{number}" for number in range(NAMESPACES))}
# What an operator may ask for. The API server itself asks for other kinds; both have Leases.
KINDS = ("distillationchains", "jobs", "pods", "events", "services", "networkpolicies", "namespaces", "leases")


def wait_until_known(operator: Operator, chains: int, *, phase: str = "Succeeded") -> None:
    """Returns when the operator knows so many chains of a phase and has nothing to do."""
    deadline = time.monotonic() + DEADLINE_S
    known, page = 0.0, ""
    while known < chains or "\ndistillchain_queue_depth 0.0\n" not in page:
        if time.monotonic() > deadline:
            raise SystemExit(f"after {DEADLINE_S} s the operator knows {known:.0f} of {chains} chains ({phase})")
        time.sleep(0.2)
        page = operator.scrape()
        known = total(page, "distillchain_chains", label=f'phase="{phase}"')


def measure_start(checkout: Path, control_plane: ControlPlane, chains: int) -> dict[str, float]:
    """One start of an operator, until it knows all chains and has done its work."""
    started = time.monotonic()
    with operator_of(checkout, control_plane) as operator:
        wait_until_known(operator, chains)
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


def measure_idle(
    control_plane: ControlPlane, settings: Mapping[str, str], *, chains: int, seconds: float
) -> tuple[Counter[tuple[str, str]], float]:
    """The requests of an operator that has nothing to do, and its CPU time in seconds."""
    with operator_of(CHECKOUT, control_plane, settings) as operator:
        wait_until_known(operator, chains)
        # One is in each namespace; a watch reports it after its first list, which begins when the others are known.
        wait_until_known(operator, SUSPENDED, phase="Suspended")
        time.sleep(SETTLE_S)
        before, cpu_s = asyncio.run(count_requests(control_plane)), operator.cpu_s()
        time.sleep(seconds)
        return asyncio.run(count_requests(control_plane)) - before, operator.cpu_s() - cpu_s


async def count_requests(control_plane: ControlPlane) -> Counter[tuple[str, str]]:
    """The requests so far by verb and kind, without watches."""
    counts: Counter[tuple[str, str]] = Counter()
    async with connected(control_plane) as api:
        for labels, count in await api.count_requests():
            if labels["resource"] in KINDS and labels["verb"] != "WATCH":
                counts[labels["verb"], labels["resource"]] += int(count)
    return counts


async def add_suspended(control_plane: ControlPlane) -> None:
    """Chains that wait for their user."""
    async with connected(control_plane) as api:
        for number in range(SUSPENDED):
            document = a_document(f"suspended-{number}", stages=STAGES, suspend=True)
            await api.send("POST", chains_path(f"team-{number % NAMESPACES}"), document)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chains", type=int, nargs="+", default=[1000, 2500, 5000], help="numbers, ascending")
    parser.add_argument("--repeat", type=int, default=1, help="starts with each number of chains")
    parser.add_argument("--operator", type=Path, action="append", help="checkout whose operator is measured too")
    parser.add_argument("--idle", type=float, default=0, help="seconds; 0: the idle operator is not measured")
    options = parser.parse_args()
    measured = Measured()
    with tempfile.TemporaryDirectory() as folder, ControlPlane(Path(folder)) as control_plane:
        install_crd(control_plane)
        for namespace in (MODEL, *(f"team-{number}" for number in range(NAMESPACES))):
            control_plane.create_namespace(namespace)
        control_plane.processes.stop("kube-controller-manager", grace_s=0.5)
        model = asyncio.run(create_model(control_plane))
        loaded = 1  # the model
        for chains in options.chains:
            asyncio.run(add_copies(control_plane, model, range(loaded, chains), namespaces=NAMESPACES))
            loaded = chains
            for checkout in [CHECKOUT, *(options.operator or [])] * options.repeat:
                found = measure_start(checkout, control_plane, chains)
                if checkout == CHECKOUT:
                    measured.add(f"start-{chains}", found)
                values = ", ".join(f"{name} {value:.1f}" for name, value in found.items())
                print(f"{chains} chains, operator of {checkout.name}: {values}, load {load()}", flush=True)
        if options.idle:
            asyncio.run(add_suspended(control_plane))
            for where, settings, known in (("all", LEASE, loaded), (NAMESPACES, OF_SOME, loaded - 1)):
                asked, cpu_s = measure_idle(control_plane, settings, chains=known, seconds=options.idle)
                others = sum(count for (_, kind), count in asked.items() if kind != "leases")
                measured.add(f"idle-{where}", {"requests": others})
                listed = ", ".join(f"{count} {verb} {kind}" for (verb, kind), count in sorted(asked.items()))
                idle = f"{listed or 'no requests'}, CPU {cpu_s:.2f} s in {options.idle:.0f} s"
                print(f"idle, {loaded} chains, {where} namespaces: {idle}", flush=True)
    table, is_within = measured.compare()
    print(table)
    return 0 if is_within else 1


if __name__ == "__main__":
    sys.exit(main())
