"""The plans of the chains that were looked at last, with their Jobs. They spare time; no decision depends on them."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, NamedTuple

from distillchain_api.graph import Plan, build_plan
from distillchain_api.plan_check import check_plan
from distillchain_api.resource.spec import parse_chain
from distillchain_operator.jobs.stage_job import JobDefaults
from distillchain_operator.jobs.wanted_jobs import WantedJobs

KEPT = 256  # a plan of three stages with its Jobs takes about 60 KB


class Prepared(NamedTuple):
    """The plan of a chain, and the Jobs that it asks for."""

    plan: Plan
    wanted: WantedJobs


class RecentPlans:
    """Plans by chain, for what they were made of: a restored backup of etcd may use a generation twice."""

    def __init__(self, defaults: JobDefaults) -> None:
        self._defaults = defaults
        self._kept: OrderedDict[str, tuple[dict[str, Any], Prepared]] = OrderedDict()

    def of(self, document: dict[str, Any]) -> Prepared:
        """The plan of a chain. Raises: BadDocument with every fault of its spec."""
        uid, read = document["metadata"]["uid"], _without_changes_of_status(document)
        known = self._kept.pop(uid, None)
        if known is None or known[0] != read:
            plan = build_plan(parse_chain(document, from_cluster=True))
            check_plan(plan)
            known = read, Prepared(plan, WantedJobs(plan, self._defaults))
        self._kept[uid] = known
        if len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return known[1]


def _without_changes_of_status(document: dict[str, Any]) -> dict[str, Any]:
    others = {name: value for name, value in document.items() if name != "status"}
    metadata = {k: v for k, v in document["metadata"].items() if k not in ("resourceVersion", "managedFields")}
    return {**others, "metadata": metadata}
