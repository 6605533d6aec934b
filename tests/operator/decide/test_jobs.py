"""The Job of a stage: golden manifests, names, and which part of the pod template takes precedence."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from chain_builders import IMAGE, a_chain, a_document, a_plan
from cluster.controlplane import ControlPlane
from distillchain_api.graph import build_plan
from distillchain_api.resource.spec import parse_chain
from distillchain_api.wire.work_order import (
    WORK_ORDER_ENV,
    WorkOrder,
)
from distillchain_operator.jobs.stage_job import JobDefaults, MissingImage, build_job, build_probe_pod, job_name
from jobs_of import OPERATORS_POD, job_of, trainer_of

GOLDEN = Path(__file__).parents[2] / "golden"
USERS_POD: dict[str, Any] = {
    "metadata": {"labels": {"team": "nlp"}, "annotations": {"example.com/note": "kept"}},
    "spec": {
        "nodeSelector": {"accelerator": "a10"},
        "serviceAccountName": "trainer-irsa",
        "securityContext": {"runAsUser": 1000},
        "terminationGracePeriodSeconds": 300,
        "containers": [
            {
                "name": "trainer",
                "command": ["/opt/venv/bin/python", "-m", "distillchain_trainer"],
                "env": [
                    {"name": "HF_ENDPOINT", "value": "https://mirror.example"},
                    {"name": "HOME", "value": "/scratch"},
                ],
                "volumeMounts": [{"name": "scratch", "mountPath": "/scratch"}],
            },
            {"name": "sidecar", "image": "registry.example/metrics:1"},
        ],
        "volumes": [{"name": "scratch", "emptyDir": {"sizeLimit": "50Gi"}}],
    },
}
CASES = {
    "job-plain": {},
    "job-fine-tune": {"teacher": {"model": "hf://org/pretrained", "fineTune": {"epochs": 2}}},
    "job-users-pod": {
        "template": {
            "image": IMAGE,
            "resources": {"limits": {"nvidia.com/gpu": 1}},
            "pod": USERS_POD,
            "retries": 5,
            "timeout": "6h",
        }
    },
    "job-two-nodes": {
        "template": {
            "image": IMAGE,
            "resources": {"limits": {"nvidia.com/gpu": 8}},
            "parallelism": {"nodes": 2},
        }
    },
    "job-in-a-queue": {
        "template": {
            "image": IMAGE,
            "queueName": "gpu-queue",
            "job": {
                "labels": {"kueue.x-k8s.io/priority-class": "urgent"},
                "annotations": {"example.com/note": "kept"},
                "managedBy": "example.com/job-controller",
            },
        }
    },
    "job-service-account-credentials": {"storage": {"uri": "s3://models/distill", "region": "eu-west-1"}},
}


@pytest.mark.parametrize("name", CASES)
def test_the_manifest_is_the_golden_one(name: str):
    rendered = yaml.safe_dump(job_of(**CASES[name]), sort_keys=False, width=120)
    path = GOLDEN / f"{name}.yaml"
    if os.environ.get("DISTILLCHAIN_UPDATE_GOLDEN") == "1":
        path.write_text(rendered)
    assert path.read_text() == rendered, "reviewed the change? rewrite with DISTILLCHAIN_UPDATE_GOLDEN=1"


@pytest.mark.cluster
@pytest.mark.parametrize("name", CASES)
def test_the_api_server_accepts_the_golden_manifest_in_a_restricted_namespace(
    name: str, control_plane: ControlPlane, namespace: str
):
    control_plane.kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
    control_plane.kubectl("create", "serviceaccount", "trainer-irsa", "-n", namespace)
    job = yaml.safe_load((GOLDEN / f"{name}.yaml").read_text())
    del job["metadata"]["ownerReferences"]  # its chain does not exist here
    job["metadata"]["namespace"] = namespace
    pod = build_probe_pod(job)
    for container in pod["spec"]["containers"]:  # the user's own sidecar has no security context
        container.setdefault("securityContext", trainer_of(job)["securityContext"])
    for document in (job, pod):
        done = control_plane.kubectl(
            "create", "--dry-run=server", "--validate=strict", "-f", "-", input=json.dumps(document)
        )
        assert "would violate" not in done.stderr


def test_the_same_arguments_give_the_same_bytes():
    assert json.dumps(job_of()) == json.dumps(job_of())


def test_the_name_depends_on_everything_that_the_job_runs():
    names = {
        job_of(**spec)["metadata"]["name"]
        for spec in (
            {},
            {"template": {"image": "another"}},
            {"template": {"image": IMAGE, "retries": 9}},
            {"template": {"image": IMAGE, "timeout": "1h"}},
            {"template": {"image": IMAGE, "training": {"epochs": 9}}},
            {"teacher": {"model": "hf://org/teacher", "gate": {"minMetric": 0.5}}},
        )
    }
    assert len(names) == 6


def test_a_recreated_chain_has_the_same_job_names():
    """So its first Job conflicts with the old one and waits, instead of running beside it."""
    chain = a_chain()
    recreated = chain.model_copy(
        update={"metadata": chain.metadata.model_copy(update={"uid": "another", "generation": 7})}
    )
    names = {
        build_job(c, build_plan(c).stages[0], defaults=JobDefaults())["metadata"]["name"] for c in (chain, recreated)
    }
    assert len(names) == 1


@pytest.mark.parametrize(
    "chain, stage, want",
    [
        pytest.param("relay", "mini", "relay-mini-0123456789", id="short"),
        pytest.param("a.b", "mini", "a-b-mini-0123456789", id="a dot"),
        pytest.param("c" * 63, "s" * 32, f"{'c' * 27}-{'s' * 24}-0123456789", id="both truncated"),
        pytest.param("c" * 26 + "-" * 5 + "x", "s" * 32, f"{'c' * 26}-{'s' * 24}-0123456789", id="truncated at a dash"),
    ],
)
def test_a_jobs_name_is_a_dns_label(chain: str, stage: str, want: str):
    name = job_name(chain, stage, "0123456789abcdef")
    assert name == want
    assert len(name) <= 63


def test_labels_are_as_short_as_kubernetes_requires():
    job = job_of(name="c" * 63, stages=["s" * 32])
    assert all(len(value) <= 63 for value in job["metadata"]["labels"].values())
    assert job["spec"]["template"]["metadata"]["labels"].items() >= job["metadata"]["labels"].items()


def test_the_work_order_can_be_read_from_the_job():
    plan = a_plan()
    env = {e["name"]: e for e in trainer_of(job_of())["env"]}
    assert WorkOrder.parse(env[WORK_ORDER_ENV]["value"]) == plan.stages[0].work_order


def test_a_dollar_in_the_work_order_is_not_expanded_by_kubernetes():
    document = a_document()["spec"]["task"]
    document["labels"] = ["$(HOME)", "costs $5"]
    value = {e["name"]: e for e in trainer_of(job_of(task=document))["env"]}[WORK_ORDER_ENV]["value"]
    assert "$$(HOME)" in value
    assert "costs $$5" in value


def test_the_users_command_security_and_volumes_take_precedence_but_not_token_and_restart_policy():
    job = job_of(
        template={"image": IMAGE, "pod": USERS_POD | {"spec": USERS_POD["spec"] | {"restartPolicy": "Always"}}}
    )
    pod = job["spec"]["template"]["spec"]
    assert pod["restartPolicy"] == "Never"
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsUser"] == 1000
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["terminationGracePeriodSeconds"] == 300
    trainer = trainer_of(job)
    assert trainer["command"] == ["/opt/venv/bin/python", "-m", "distillchain_trainer"]
    assert [e["value"] for e in trainer["env"] if e["name"] == "HOME"] == ["/scratch"]
    assert [m["mountPath"] for m in trainer["volumeMounts"]] == ["/scratch", "/tmp"]


def test_a_volume_of_the_user_at_tmp_replaces_the_default_one():
    container = {"name": "trainer", "volumeMounts": [{"name": "big", "mountPath": "/tmp"}]}
    volumes = [{"name": "big", "emptyDir": {"sizeLimit": "500Gi"}}]
    job = job_of(template={"image": IMAGE, "pod": {"spec": {"containers": [container], "volumes": volumes}}})
    assert job["spec"]["template"]["spec"]["volumes"] == volumes


def pod_over_the_operators(pod: dict[str, Any] | None) -> dict[str, Any]:
    plan = build_plan(a_chain(template={"pod": pod} if pod else {}))
    template: dict[str, Any] = build_job(plan.chain, plan.stages[0], defaults=JobDefaults(IMAGE, OPERATORS_POD))["spec"]
    return template["template"]


def test_a_stage_without_a_pod_gets_the_operators_pod_template():
    made = pod_over_the_operators(None)["spec"]
    assert made["serviceAccountName"] == "trainer"
    assert [container["name"] for container in made["containers"]] == ["trainer", "proxy"]


def test_a_chains_pod_is_merged_over_the_operators():
    """A chain that only selects other nodes must not lose credentials, store and pull secrets of the platform."""
    env = [{"name": "AWS_REGION", "value": "us-east-1"}, {"name": "MORE", "value": "1"}]
    trainer = {"name": "trainer", "env": env, "resources": {"limits": {"nvidia.com/gpu": 2}}}
    mine = {"nodeSelector": {"pool": "mine"}, "tolerations": [{"key": "spot"}], "containers": [trainer]}
    volumes = [{"name": "scratch", "emptyDir": {}}]
    pod = {"metadata": {"labels": {"team": "nlp"}}, "spec": {**mine, "volumes": volumes}}
    made = pod_over_the_operators(pod)
    labels, spec = made["metadata"]["labels"], made["spec"]
    assert (labels["queue"], labels["team"]) == ("gpu", "nlp")
    assert spec["serviceAccountName"] == "trainer"
    assert spec["imagePullSecrets"] == [{"name": "registry"}]
    assert spec["securityContext"]["runAsUser"] is None
    assert (spec["nodeSelector"], spec["tolerations"]) == ({"pool": "mine"}, [{"key": "spot"}])
    sources = [(volume["name"], sorted(set(volume) - {"name"})) for volume in spec["volumes"]]
    ours = [("distillchain-tmp", ["emptyDir"]), ("distillchain-shm", ["emptyDir"])]  # the latter for two processes
    assert sources == [("ca", ["configMap"]), ("scratch", ["emptyDir"]), *ours]
    containers = {container["name"]: container for container in spec["containers"]}
    assert set(containers) == {"trainer", "proxy"}
    values = {entry["name"]: entry.get("value") for entry in containers["trainer"]["env"]}
    assert values["AWS_ENDPOINT_URL_S3"] == "https://s3.example"
    assert (values["AWS_REGION"], values["MORE"]) == ("us-east-1", "1")
    assert containers["trainer"]["resources"]["limits"] == {"nvidia.com/gpu": 2, "memory": "8Gi"}
    assert [mount["mountPath"] for mount in containers["trainer"]["volumeMounts"]] == ["/etc/ca", "/tmp", "/dev/shm"]


def test_null_in_a_chains_pod_removes_a_field_of_the_operators():
    spec = pod_over_the_operators({"spec": {"serviceAccountName": None, "tolerations": None}})["spec"]
    assert (spec["serviceAccountName"], spec["tolerations"]) == (None, None)


@pytest.mark.parametrize(
    "pod",
    [
        pytest.param({}, id="empty"),
        pytest.param({"metadata": {"labels": None}, "spec": {"containers": None, "volumes": None}}, id="null lists"),
        pytest.param(
            {"spec": {"containers": [{"name": "trainer", "env": None, "volumeMounts": [{"name": "a"}]}]}},
            id="a mount without a path, which the API server refuses",
        ),
    ],
)
def test_a_pod_with_the_right_types_can_be_merged(pod: dict[str, Any]):
    assert trainer_of(job_of(template={"image": IMAGE, "pod": pod}))["image"] == IMAGE
    assert pod_over_the_operators(pod)


def test_labels_and_annotations_are_on_the_job_and_its_pods():
    job = job_of(
        template={
            "image": IMAGE,
            "job": {"labels": {"team": "nlp", "cost": "7"}, "annotations": {"example.com/note": "of the job"}},
            "pod": {"metadata": {"labels": {"cost": "8"}, "annotations": {"example.com/note": "of the pod"}}},
        }
    )

    pod = job["spec"]["template"]["metadata"]
    assert {"team": "nlp", "cost": "7", "distillchain.io/chain": "relay"}.items() <= job["metadata"]["labels"].items()
    assert {"team": "nlp", "cost": "8", "distillchain.io/chain": "relay"}.items() <= pod["labels"].items()
    assert job["metadata"]["annotations"]["example.com/note"] == "of the job"
    assert pod["annotations"] == {"example.com/note": "of the pod"}


def test_a_stages_job_replaces_that_of_the_template():
    document = a_document(template={"image": IMAGE, "job": {"labels": {"team": "nlp"}}})
    document["spec"]["stages"][0]["job"] = {"labels": {"own": "yes"}}
    plan = build_plan(parse_chain(document))
    mini, tiny = (build_job(plan.chain, stage, defaults=JobDefaults())["metadata"]["labels"] for stage in plan.stages)

    assert [name for name in ("own", "team") if name in mini] == ["own"]
    assert [name for name in ("own", "team") if name in tiny] == ["team"]


def test_without_any_image_the_field_is_named():
    with pytest.raises(MissingImage, match=r"^spec\.template\.image: missing for stage mini"):
        job_of(template={})
