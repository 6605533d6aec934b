"""The operator's roles grant exactly what it calls."""

from __future__ import annotations

import itertools
from pathlib import Path

import yaml

from cluster.operator_process import SERVICE_ACCOUNT

CALLS = {
    "distillchain.io/distillationchains": {"get", "list", "watch"},
    "distillchain.io/distillationchains/status": {"patch"},
    "distillchain.io/distillationchains/finalizers": {"update"},  # an admission plugin requires it to own a Job
    "batch/jobs": {"get", "list", "watch", "create", "patch", "delete"},
    "/pods": {"list", "watch", "create"},
    "/services": {"list", "create"},
    "networking.k8s.io/networkpolicies": {"list", "create"},
    "/pods/log": {"get"},
    "events.k8s.io/events": {"create"},
    "coordination.k8s.io/leases": {"create"},
    "coordination.k8s.io/leases distillchain-operator": {"get", "update"},
}
"""What the operator calls. Add a right here together with the call that needs it."""


def test_the_role_grants_what_is_called_and_nothing_else(repository: Path):
    documents = yaml.safe_load_all((repository / "config" / "access.yaml").read_text())
    ours = {("ClusterRole", SERVICE_ACCOUNT), ("Role", f"{SERVICE_ACCOUNT}-leader")}
    rules = [r for d in documents if (d["kind"], d["metadata"]["name"]) in ours for r in d["rules"]]

    granted: dict[str, set[str]] = {}
    for rule in rules:
        for group, resource in itertools.product(rule["apiGroups"], rule["resources"]):
            what = " ".join([f"{group}/{resource}", *rule.get("resourceNames", [])])
            granted.setdefault(what, set()).update(rule["verbs"])

    assert granted == CALLS
