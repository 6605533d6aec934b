"""What the API server refuses or delays on the way to a running pod: quotas, policies, pod templates, Secrets."""

from __future__ import annotations

from typing import Any

import pytest

from chain_builders import a_document
from distillchain_api.resource.spec import parse_chain
from distillchain_operator.jobs.stage_job import JobDefaults, build_job, build_probe_pod
from relay import Relay

pytestmark = [pytest.mark.cluster, pytest.mark.xdist_group("operator")]


def test_a_stage_waits_while_a_quota_is_used_up_and_fails_if_it_needs_more_than_all_of_it(relay: Relay):
    def used() -> str | None:
        status = relay.cluster.get("quota", "full", "-n", relay.namespace)["status"]
        return f"{status['used']['pods']} of {status['hard']['pods']}" if "used" in status else None

    relay.kubectl("create", "quota", "full", "--hard=pods=0")
    relay.wait("the quota", lambda: used() == "0 of 0")
    relay.apply(a_document(stages=["mini"]))
    assert "exceeded quota: full" in relay.wait_for_phase("Failed")["message"]

    relay.kubectl("patch", "quota", "full", "--type=merge", "-p", '{"spec": {"hard": {"pods": "1"}}}')
    relay.wait("the larger quota", lambda: used() == "0 of 1")
    relay.kubectl("run", "other", "--image=x")
    relay.wait("the used quota", lambda: used() == "1 of 1")
    relay.apply(a_document(stages=["mini"], template={"image": "y"}))
    status = relay.wait_for_phase("Pending")
    assert "exceeded quota: full" in status["message"]
    assert relay.jobs() == []
    before = relay.chain()["metadata"]["resourceVersion"]
    for _ in range(2):  # seconds, in which each write would cause the next if there were no backoff
        relay.wait_for_operator()
    assert relay.chain()["metadata"]["resourceVersion"] == before
    relay.kubectl("delete", "quota/full", "pod/other")
    relay.apply(a_document(stages=["mini"], template={"image": "x"}))  # instead of waiting half a minute
    relay.commit("mini")
    relay.wait_for_phase("Succeeded")


def test_an_existing_pod_with_the_name_of_the_dry_run_does_not_block_the_stage(relay: Relay):
    relay.apply(a_document(stages=["mini"], suspend=True))
    probe = build_probe_pod(build_job(parse_chain(relay.chain()), relay.planned("mini"), defaults=JobDefaults()))
    relay.kubectl("run", probe["metadata"]["name"], "--image=x")
    relay.apply(a_document(stages=["mini"]))
    relay.commit("mini")


def test_a_policy_against_pods_without_a_controller_refuses_no_stage(relay: Relay):
    metadata = {"name": f"no-naked-pods-{relay.namespace}"[:63].rstrip("-")}
    here = {"matchLabels": {"kubernetes.io/metadata.name": relay.namespace}}
    pods = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}
    api = {"apiVersion": "admissionregistration.k8s.io/v1", "metadata": metadata}
    policy: dict[str, Any] = {
        "matchConstraints": {"namespaceSelector": here, "resourceRules": [pods]},
        "validations": [
            {"expression": "object.metadata.?ownerReferences.orValue([]).exists(o, o.?controller == optional.of(true))"}
        ],
    }
    binding = {"policyName": metadata["name"], "validationActions": ["Deny"]}
    relay.cluster.apply(
        {"kind": "ValidatingAdmissionPolicy", **api, "spec": policy},
        {"kind": "ValidatingAdmissionPolicyBinding", **api, "spec": binding},
    )
    naked = ["-n", relay.namespace, "run", "naked", "--image=x", "--dry-run=server"]
    try:
        relay.wait("the policy", lambda: relay.cluster.kubectl(*naked, check=False).returncode != 0)
        relay.apply(a_document(stages=["mini"]))
        relay.commit("mini")
    finally:
        for kind in ("validatingadmissionpolicybinding", "validatingadmissionpolicy"):
            relay.kubectl("delete", kind, metadata["name"])


@pytest.mark.parametrize(
    "template, want",
    [
        pytest.param(
            {"image": "x", "resources": {"limits": {"requests.cpu/x": 1}}},
            "limits[requests.cpu/x]",
            id="a reserved name",
        ),
        pytest.param(
            {"image": "x", "pod": {"spec": {"nodeSelektor": {"a": "b"}}}},
            "spec.template.pod.spec.nodeSelektor: unknown field; did you mean nodeSelector?",
            id="a misspelt field",
        ),
        pytest.param(
            {"image": "x", "pod": {"spec": {"serviceAccountName": "nobody"}}},
            'serviceaccount "nobody" not found',
            id="a missing service account, which only pod admission finds",
        ),
        pytest.param({}, "spec.template.image: missing for stage mini", id="no image at all"),
    ],
)
def test_a_pod_that_the_api_server_refuses_stalls_the_chain_with_the_reason(
    relay: Relay, template: dict[str, Any], want: str
):
    relay.apply(a_document(template=template))
    relay.wait_for_phase("Failed")
    stalled = relay.wait_for_condition("Stalled")
    assert stalled["reason"] == "PodRejected"
    assert want in stalled["message"]
    assert relay.jobs() == []

    relay.apply(a_document())  # corrected
    relay.wait_for_pod("mini")


def test_a_pod_that_waits_for_a_missing_secret_stalls_and_recovers(relay: Relay):
    relay.apply(a_document(stages=["mini"]))
    pod = relay.wait_for_pod("mini")
    relay.hold(pod, reason="CreateContainerConfigError", message='secret "s3-credentials" not found')
    stalled = relay.wait_for_condition("Stalled")
    assert 'secret "s3-credentials" not found' in stalled["message"]
    relay.run(pod)
    relay.wait_for_condition("Reconciling")
    relay.commit("mini")
