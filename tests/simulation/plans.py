"""Plans and Jobs, each built once for the same chain: they are pure, and would take most of the time of a history."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

from distillchain_api.graph import Plan, build_plan
from distillchain_api.plan_check import check_plan
from distillchain_api.resource.spec import DistillationChain, parse_chain
from distillchain_operator.caches import known_chains, recent_plans
from distillchain_operator.jobs import wanted_jobs
from distillchain_operator.jobs.stage_job import build_job

KEPT = 2_000
_chains: dict[str, DistillationChain] = {}
_plans: dict[int, tuple[DistillationChain, Plan]] = {}
_checked: dict[int, Plan] = {}
_jobs: dict[Any, tuple[DistillationChain, Any]] = {}


def chain_of(document: dict[str, Any], *, from_cluster: bool = True) -> DistillationChain:
    """`parse_chain`."""
    metadata = document["metadata"]
    names = ("name", "namespace", "uid", "generation", "annotations")
    key = json.dumps([document["spec"], *(metadata.get(name) for name in names)])
    if key not in _chains:
        if len(_chains) > KEPT:
            _forget()
        _chains[key] = parse_chain(document, from_cluster=from_cluster)
    return _chains[key]


def plan_of(chain: DistillationChain) -> Plan:
    """`build_plan`."""
    # The chain is kept too, so that no other one gets its id.
    if id(chain) not in _plans:
        _plans[id(chain)] = chain, build_plan(chain)
    return _plans[id(chain)][1]


def _check(plan: Plan) -> None:
    if id(plan) not in _checked:
        check_plan(plan)
        _checked[id(plan)] = plan


def _job_of(chain: DistillationChain, stage: Any, *, defaults: Any) -> Any:
    key = id(chain), stage.name, stage.digest, stage.work_order.export_only, defaults.image
    if key not in _jobs:
        _jobs[key] = chain, build_job(chain, stage, defaults=defaults)
    return _jobs[key][1]


def _forget() -> None:
    for memory in (_chains, _plans, _checked, _jobs):
        memory.clear()


@contextmanager
def remembered_plans() -> Iterator[None]:
    """Lets the operator use what was built before."""
    _forget()
    with (
        mock.patch.object(recent_plans, "parse_chain", chain_of),
        mock.patch.object(recent_plans, "build_plan", plan_of),
        mock.patch.object(recent_plans, "check_plan", _check),
        mock.patch.object(wanted_jobs, "build_job", _job_of),
        mock.patch.object(known_chains, "zlib", SimpleNamespace(compress=lambda data, _: data, decompress=bytes)),
    ):
        yield
