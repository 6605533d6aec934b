"""Pods and resources: misspelt fields, wrong types and impossible amounts are found by `validate`, as by the API server."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from bad_chains import GOOD
from cluster.controlplane import ControlPlane
from distillchain_api.faults import BadDocument
from distillchain_api.resource.pod import unknown_fields
from distillchain_api.resource.quantities import quantity_value
from distillchain_api.resource.spec import parse_chain

# A pod with every part that a trainer commonly needs.
GOOD_POD: dict[str, Any] = {
    "metadata": {"labels": {"team": "nlp"}, "annotations": {"note": "any text"}, "creationTimestamp": None},
    "spec": {
        "nodeSelector": {"gpu": "a100"},
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 30}],
        "affinity": {
            "nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {
                    "nodeSelectorTerms": [{"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}]}]
                }
            }
        },
        "securityContext": {"runAsUser": None, "supplementalGroups": [1000], "fsGroupChangePolicy": "OnRootMismatch"},
        "serviceAccountName": "trainer",
        "imagePullSecrets": [{"name": "registry"}],
        "containers": [
            {
                "name": "trainer",
                "image": "registry.example/trainer:1",
                "env": [{"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token"}}}],
                "resources": {"limits": {"cpu": 0.5, "memory": "8Gi"}, "requests": {"cpu": "250m", "memory": "8Gi"}},
                "volumeMounts": [{"name": "scratch", "mountPath": "/scratch"}, {"name": "shm", "mountPath": "/dev/shm"}],
                "livenessProbe": {"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 5},
            }
        ],
        "volumes": [
            {"name": "scratch", "ephemeral": {"volumeClaimTemplate": {"spec": {
                "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "50Gi"}}}}}},
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "2Gi"}},
        ],
    },
}  # fmt: skip


def faults_of_template(*, from_cluster: bool = False, **template: Any) -> list[str]:
    document = copy.deepcopy(GOOD)
    document["spec"]["template"] = template
    try:
        parse_chain(document, from_cluster=from_cluster)
    except BadDocument as error:
        return [str(fault).removeprefix("spec.template.") for fault in error.faults]
    return []


def faults_of_trainer(**container: Any) -> list[str]:
    faults = faults_of_template(pod={"spec": {"containers": [{"name": "trainer", **container}]}})
    return [fault.removeprefix("pod.spec.containers[0].") for fault in faults]


def test_a_pod_with_everything_has_no_fault():
    assert faults_of_template(pod=GOOD_POD) == []


@pytest.mark.cluster
def test_the_api_server_has_no_fault_with_it_either(control_plane: ControlPlane, namespace: str):
    template = {"metadata": {"name": "pod", "namespace": namespace, **GOOD_POD["metadata"]}, "spec": GOOD_POD["spec"]}
    control_plane.kubectl("create", "serviceaccount", "trainer", "-n", namespace)
    pod = json.dumps({"apiVersion": "v1", "kind": "Pod", **template})
    control_plane.kubectl("create", "--dry-run=server", "--validate=strict", "-f", "-", input=pod)


@pytest.mark.parametrize(
    "pod, want",
    [
        pytest.param({"spec": {"nodeSelctor": {}}}, "pod.spec.nodeSelctor: unknown field; did you mean nodeSelector?", id="misspelt"),
        pytest.param(
            {"spec": {"env": []}},
            "pod.spec.env: unknown field; did you mean pod.spec.containers[].env?",
            id="a level too high",
        ),
        pytest.param(
            {"spec": {"volumeMounts": []}},
            "pod.spec.volumeMounts: unknown field; did you mean pod.spec.containers[].volumeMounts?",
            id="a level too high, and like a field that is there",
        ),
        pytest.param(
            {"spec": {"gpuCount": 1}},
            "pod.spec.gpuCount: unknown field; Kubernetes 1.36 has no field of this name here; remove it",
            id="like no other",
        ),
        pytest.param({"kind": "Pod"}, "pod.kind: unknown field; a pod template has only metadata and spec; remove it", id="a field of a whole manifest"),
        pytest.param({"gpuCount": 1}, "pod.gpuCount: unknown field; a pod template has only metadata and spec; remove it", id="like no other, at the top"),
        pytest.param({"metadata": {"lables": {}}}, "pod.metadata.lables: unknown field; did you mean labels?", id="metadata"),
        pytest.param(
            {"metadata": {"name": "mine"}},
            "pod.metadata.name: unknown field; the Job controller names and places pods; expected only labels and "
            "annotations",
            id="a name for the pod",
        ),
        pytest.param({"spec": {"nodeSelector": {"gpu": True}}}, "pod.spec.nodeSelector.gpu: got true, expected text; in YAML, quote it: without quotation marks, YAML 1.1 and kubectl read y, yes and on as true", id="a truth value"),
        pytest.param({"spec": {"hostNetwork": "yes"}}, 'pod.spec.hostNetwork: got "yes", expected true or false', id="a text"),
        pytest.param({"spec": {"priority": True}}, "pod.spec.priority: got true, expected a whole number", id="no number"),
        pytest.param({"spec": {"volumes": {}}}, "pod.spec.volumes: got {}, expected a list", id="a mapping for a list"),
        pytest.param({"spec": []}, "pod.spec: got [], expected a mapping", id="a list for a mapping"),
        pytest.param([], "pod: got [], expected a mapping with metadata and spec, as a PodTemplateSpec", id="no mapping"),
        pytest.param({"spec": {"containers": [{"image": "x"}]}}, "pod.spec.containers[0].name: missing; add it", id="no name"),
        pytest.param(
            {"spec": {"volumes": [{"name": "a", "emptyDir": {"sizeLimit": "50Gb"}}]}},
            'pod.spec.volumes[0].emptyDir.sizeLimit: got "50Gb", expected a quantity such as 1, 500m or 16Gi',
            id="a size",
        ),
    ],
)  # fmt: skip
def test_a_fault_in_a_pod_is_named_with_its_path_and_remedy(pod: Any, want: str):
    assert faults_of_template(pod=pod) == [want]


@pytest.mark.parametrize(
    "container, want",
    [
        pytest.param({"resurces": {}}, ["resurces: unknown field; did you mean resources?"], id="misspelt"),
        pytest.param({"env": [{"name": "A", "value": 1}]}, ["env[0].value: got 1, expected text; in YAML, quote it"], id="a number"),
        pytest.param(
            {"resources": {"limits": {"memory": "8GB", "example.com/fpga": 1.5}}},
            [
                'resources.limits.memory: got "8GB", expected a quantity such as 1, 500m or 16Gi',
                "resources.limits.example.com/fpga: got 1.5, expected a whole number of example.com/fpga",
            ],
            id="amounts",
        ),
        pytest.param({"resources": {"requests": {"nvidia.com/gpu": 1}}}, [], id="the operator's template may have the limit"),
    ],
)  # fmt: skip
def test_a_fault_in_a_container_is_named_with_its_path_and_remedy(container: Any, want: list[str]):
    assert faults_of_trainer(**container) == want


@pytest.mark.parametrize(
    "resources, want",
    [
        pytest.param({"limits": {"cpu": "500m"}, "requests": {"cpu": "0.5"}}, [], id="the same amount in two ways"),
        pytest.param(
            {"limits": {"memory": "8Gi"}, "requests": {"memory": "9G"}},
            ['resources.requests.memory: got "9G", expected at most limits.memory, 8Gi'],
            id="more than the limit",
        ),
        pytest.param(
            {"limits": {"nvidia.com/gpu": 2}, "requests": {"nvidia.com/gpu": 1}},
            ["resources.requests.nvidia.com/gpu: got 1, expected the same as limits.nvidia.com/gpu, 2"],
            id="fewer devices than the limit",
        ),
        pytest.param(
            {"requests": {"nvidia.com/gpu": 1}},
            ["resources.requests.nvidia.com/gpu: got 1 without limits.nvidia.com/gpu, which Kubernetes requires; add it"],
            id="devices without a limit",
        ),
        pytest.param(
            {"limits": {"gpu": 1, "memmory": "1Gi", "disk": 1}},
            [
                "resources.limits.gpu: unknown resource; did you mean nvidia.com/gpu?",
                "resources.limits.memmory: unknown resource; did you mean memory?",
                "resources.limits.disk: unknown resource; expected cpu, memory or a name with a domain such as nvidia.com/gpu",
            ],
            id="unknown names",
        ),
        pytest.param({"limits": {"cpu": "-1"}}, ['resources.limits.cpu: got "-1", expected a quantity such as 1, 500m or 16Gi'], id="negative"),
    ],
)  # fmt: skip
def test_amounts_that_a_pod_may_not_have_are_refused(resources: dict[str, Any], want: list[str]):
    assert faults_of_template(resources=resources) == want


@pytest.mark.parametrize(
    "text, want",
    [
        *[("1", 1), ("+1", 1), (2, 2), ("500m", 0.5), (".5", 0.5), ("1.", 1), ("1e3", 1000), ("1E-1", 0.1), ("2E", 2e18)],
        *[("1Ki", 1024), ("1.5Gi", 1.5 * 2**30), ("1n", 1e-9)],
    ],
)  # fmt: skip
def test_a_quantity_is_read_as_kubernetes_reads_it(text: str | int, want: float):
    value = quantity_value(text)
    assert value is not None
    assert float(value) == want


@pytest.mark.parametrize("text", ["", "two", "1 Gi", "1GB", "1ki", "-1", "1e", "Gi", "1\n", True, None, -1])
def test_what_is_no_quantity_is_none(text: Any):
    assert quantity_value(text) is None


NEWER: dict[str, Any] = {"spec": {"gangName": "a", "containers": [{"name": "trainer", "fractionalGpu": 1}]}}


def test_fields_that_only_a_newer_cluster_knows_pass_where_the_api_server_has_accepted_them():
    assert len(faults_of_template(pod=NEWER)) == 2
    assert faults_of_template(pod=NEWER, from_cluster=True) == []

    document = copy.deepcopy(GOOD)
    document["metadata"]["shard"] = "a"
    assert parse_chain(document, from_cluster=True).spec == parse_chain(GOOD).spec


def test_a_suggestion_is_written_from_where_the_pod_is():
    (fault,) = unknown_fields({"nodeSelector": {}}, field="spec.stages[1].pod")
    assert fault.problem == "unknown field; did you mean spec.stages[1].pod.spec.nodeSelector?"


def a_token(audience: str | None) -> dict[str, Any]:
    source = {"path": "token"} if audience is None else {"path": "token", "audience": audience}
    return {"spec": {"volumes": [{"name": "token", "projected": {"sources": [{"serviceAccountToken": source}]}}]}}


@pytest.mark.parametrize("audience", [None, "", "https://kubernetes.default.svc.cluster.local"])
def test_a_token_for_the_api_server_is_refused(audience: str | None):
    (fault,) = faults_of_template(pod=a_token(audience), from_cluster=True)
    assert fault == (
        f"pod.spec.volumes[0].projected.sources[0].serviceAccountToken.audience: got {json.dumps(audience)}, expected "
        "that of another service, such as sts.amazonaws.com; trainers get no token for the API server"
    )


def test_a_token_for_another_service_is_accepted():
    assert faults_of_template(pod=a_token("sts.amazonaws.com")) == []
