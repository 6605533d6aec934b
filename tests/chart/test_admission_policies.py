"""The optional admission policies of the chart on a real API server: what they forbid, and what they let through."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from chain_builders import a_document
from chart.helm import CHECKOUT, documents, named, render
from cluster.controlplane import ControlPlane
from cluster.waiting import wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.xdist_group("cli")]  # the control plane of the tests of the command line

CONTAINER = {"name": "trainer"}
FORBIDDEN: list[tuple[str, dict[str, Any]]] = [
    ("hostPath volumes", {"template": {"spec": {"volumes": [{"name": "host", "hostPath": {"path": "/"}}]}}}),
    ("hostPath volumes", {"cache": {"volume": {"hostPath": {"path": "/mnt"}}}}),
    ("privileged", {"template": {"spec": {"containers": [CONTAINER | {"securityContext": {"privileged": True}}]}}}),
    ("privileged", {"stage": {"spec": {"initContainers": [{"name": "a", "securityContext": {"privileged": True}}]}}}),
    ("hostNetwork", {"stage": {"spec": {"hostNetwork": True}}}),
    ("hostPID", {"pass": {"spec": {"hostPID": True}}}),
    ("service accounts in chains: trusted, default", {"template": {"spec": {"serviceAccountName": "admin"}}}),
    ("service accounts in chains: trusted, default", {"stage": {"spec": {"serviceAccount": "admin"}}}),
]
ALLOWED: list[dict[str, Any]] = [
    {},
    {"template": {"spec": {"serviceAccountName": "trusted", "volumes": [{"name": "tmp", "emptyDir": {}}]}}},
    {"template": {"metadata": {"labels": {"a": "b"}}}, "stage": {"spec": {"containers": [CONTAINER]}}},
    # null removes a field of the operator's own pod template
    {"template": {"spec": {"volumes": None, "serviceAccountName": None, "containers": None, "hostNetwork": None}}},
    {"cache": {"volume": {"persistentVolumeClaim": {"claimName": "models"}}}},
]


@pytest.fixture
def policed(control_plane: ControlPlane, namespace: str) -> Iterator[str]:
    """A namespace in which both policies are in force."""
    control_plane.kubectl("apply", "-f", str(CHECKOUT / "crds"))
    control_plane.wait_until_served("distillationchains")
    selector = f"admissionPolicies.chains.namespaceSelector.matchLabels.kubernetes\\.io/metadata\\.name={namespace}"
    settings = [
        *("admissionPolicies.chains.enabled=true", "admissionPolicies.chains.serviceAccountNames={trusted}"),
        *("admissionPolicies.operatorPods.enabled=true", selector, f"fullnameOverride={namespace[:40]}"),
    ]
    objects = documents(render(*(argument for setting in settings for argument in ("--set", setting))))
    policies = [item for item in objects if item["kind"].startswith("ValidatingAdmissionPolicy")]
    assert len(policies) == 4
    control_plane.apply(*policies)
    yield namespace
    for item in policies:
        control_plane.kubectl("delete", item["kind"], item["metadata"]["name"], "--wait=false")


def chain(parts: dict[str, Any]) -> dict[str, Any]:
    """A chain with `pod` of the template, of its first stage and of the pass of a teacher, and a cache."""
    document = a_document()
    template, stage = document["spec"]["template"], document["spec"]["stages"][0]
    if "template" in parts:
        template["pod"] = parts["template"]
    if "stage" in parts:
        stage["pod"] = parts["stage"]
    if "pass" in parts:
        stage["teacherPass"] = {"pod": parts["pass"]}
    if "cache" in parts:
        template["cache"] = parts["cache"]
    return document


def create(cluster: ControlPlane, namespace: str, document: dict[str, Any], *more: str) -> str:
    """What kubectl says about a dry run; empty if the API server accepts the object."""
    argv = ("create", "-n", namespace, "-f", "-", "--dry-run=server", *more)
    done = cluster.kubectl(*argv, input=json.dumps(document), check=False)
    return done.stderr if done.returncode else ""


def test_a_platform_can_forbid_what_reaches_the_host_and_foreign_service_accounts(
    control_plane: ControlPlane, policed: str
):
    first = chain(FORBIDDEN[0][1])
    # The API server starts to enforce a new policy some seconds after it was created.
    wait_until("the policy", lambda: create(control_plane, policed, first), deadline_s=30)

    refusals = [create(control_plane, policed, chain(parts)) for _, parts in FORBIDDEN]
    allowed = [create(control_plane, policed, chain(parts)) for parts in ALLOWED]

    assert allowed == [""] * len(ALLOWED)
    for (want, _), refusal in zip(FORBIDDEN, refusals, strict=True):
        assert "ValidatingAdmissionPolicy" in refusal
        assert want in refusal.partition("denied request: ")[2]
    assert create(control_plane, "default", first) == ""  # the selector does not match this namespace


def test_a_chain_that_is_older_than_the_policy_can_be_suspended_labelled_and_deleted(
    control_plane: ControlPlane, namespace: str, request: pytest.FixtureRequest
):
    of = ("-n", namespace)
    control_plane.kubectl("apply", "-f", str(CHECKOUT / "crds"))
    control_plane.wait_until_served("distillationchains")
    old = chain(FORBIDDEN[0][1])
    old["metadata"]["finalizers"] = ["example.com/keep"]
    control_plane.kubectl(*of, "create", "-f", "-", input=json.dumps(old))
    request.getfixturevalue("policed")
    another = old | {"metadata": {"name": "another"}}
    wait_until("the policy", lambda: create(control_plane, namespace, another), deadline_s=30)

    def patch(change: dict[str, Any]) -> str:
        argv = (*of, "patch", "dchain", old["metadata"]["name"], "--type=merge", "-p", json.dumps(change))
        return control_plane.kubectl(*argv, check=False).stderr

    stage = old["spec"]["stages"][0] | {"pod": {"spec": {"hostNetwork": True}}}

    assert patch({"spec": {"suspend": True}}) == ""
    assert patch({"metadata": {"labels": {"team": "nlp"}}}) == ""
    assert "this cluster forbids" in patch({"spec": {"stages": [stage, *old["spec"]["stages"][1:]]}})
    control_plane.kubectl(*of, "delete", "dchain", old["metadata"]["name"], "--wait=false")
    assert patch({"metadata": {"finalizers": None}}) == ""
    assert control_plane.kubectl(*of, "get", "dchain", "-o", "name").stdout == ""


def test_the_operator_may_create_pods_in_dry_runs_only(control_plane: ControlPlane, policed: str):
    objects = documents(render("--set", f"fullnameOverride={policed[:40]}"))
    account = named(objects, "ServiceAccount", "-operator")["metadata"]
    user = f"system:serviceaccount:{account['namespace']}:{account['name']}"
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "p"},
        "spec": {"containers": [{"name": "c", "image": "x"}]},
    }
    of = ("-n", policed)
    control_plane.kubectl(*of, "create", "role", "operator", "--verb=create,get", "--resource=pods")
    control_plane.kubectl(*of, "create", "rolebinding", "operator", "--role=operator", f"--user={user}")

    def is_refused() -> bool:
        done = control_plane.kubectl(*of, "create", "-f", "-", f"--as={user}", input=json.dumps(pod), check=False)
        if done.returncode == 0:
            control_plane.kubectl(*of, "delete", "pod", "p", "--now")
        return "creates pods in dry runs only" in done.stderr

    wait_until("the policy", is_refused, deadline_s=30)

    assert create(control_plane, policed, pod, f"--as={user}") == ""
    control_plane.kubectl(*of, "create", "-f", "-", input=json.dumps(pod))  # another user
