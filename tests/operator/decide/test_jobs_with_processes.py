"""The Job of a stage with GPUs, several processes or nodes, and a cache."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest

from chain_builders import IMAGE, a_chain
from distillchain_api.graph import build_plan
from distillchain_api.wire.work_order import (
    CACHE_BYTES_ENV,
    CACHE_ENV,
    GPUS_ENV,
    NODE_ENV,
    RENDEZVOUS_ENV,
    WORK_ORDER_ENV,
    WorkOrder,
)
from distillchain_operator.jobs.stage_job import JobDefaults, build_job
from jobs_of import OPERATORS_POD, job_of, trainer_of


def processes_of(job: dict[str, Any]) -> int:
    env = {e["name"]: e for e in trainer_of(job)["env"]}
    return WorkOrder.parse(env[WORK_ORDER_ENV]["value"]).parallelism.processes


@pytest.mark.parametrize(
    ("resources", "gpus"),
    [
        ({}, None),
        ({"limits": {"memory": "8Gi"}}, None),
        ({"limits": {"nvidia.com/gpu": 2}}, "2"),
        ({"limits": {"nvidia.com/mig-1g.10gb": 1}}, "1"),
        ({"limits": {"google.com/tpu": 4}}, None),
        ({"limits": {"nvidia.com/gpu": 0}}, None),
    ],
)
def test_the_trainer_knows_how_many_gpus_its_container_asks_for(resources: dict[str, Any], gpus: str | None):
    env = {
        variable["name"]: variable.get("value")
        for variable in trainer_of(job_of(template={"image": IMAGE, "resources": resources}))["env"]
    }

    assert env.get(GPUS_ENV) == gpus


def test_gpus_of_the_operators_pod_template_get_a_process_each():
    plan = build_plan(a_chain(template={}))
    job = build_job(plan.chain, plan.stages[0], defaults=JobDefaults(IMAGE, OPERATORS_POD))
    assert processes_of(job) == 1
    four = copy.deepcopy(OPERATORS_POD)
    four["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] = 4
    assert processes_of(build_job(plan.chain, plan.stages[0], defaults=JobDefaults(IMAGE, four))) == 4
    stated = build_plan(a_chain(template={"parallelism": {"processesPerNode": 2}}))
    assert processes_of(build_job(stated.chain, stated.stages[0], defaults=JobDefaults(IMAGE, four))) == 2


@pytest.mark.parametrize(
    "parallelism, is_several", [({}, False), ({"processesPerNode": 2}, True), ({"nodes": 2}, True)]
)
def test_several_processes_get_shared_memory_and_longer_to_save_unless_the_user_decides(
    parallelism: dict[str, Any], is_several: bool
):
    pod = job_of(template={"image": IMAGE, "parallelism": parallelism})["spec"]["template"]["spec"]
    assert ({"name": "distillchain-shm", "emptyDir": {"medium": "Memory"}} in pod["volumes"]) == is_several
    assert pod["terminationGracePeriodSeconds"] == (600 if is_several else 120)
    trainer = {"name": "trainer", "volumeMounts": [{"name": "mine", "mountPath": "/dev/shm/"}]}
    spec = {"terminationGracePeriodSeconds": 30, "containers": [trainer], "volumes": [{"name": "mine", "emptyDir": {}}]}
    pod = job_of(template={"image": IMAGE, "parallelism": parallelism, "pod": {"spec": spec}})["spec"]["template"][
        "spec"
    ]
    assert [volume["name"] for volume in pod["volumes"]] == ["mine", "distillchain-tmp"]
    assert pod["terminationGracePeriodSeconds"] == 30


@pytest.mark.parametrize("size, limit", [({}, []), ({"maxSize": "100Gi"}, [str(100 * 2**30)])])
def test_a_cache_is_a_volume_of_the_pod_and_the_trainer_knows_its_folder(size: dict[str, Any], limit: list[str]):
    source = {"persistentVolumeClaim": {"claimName": "models"}}
    job = job_of(template={"image": IMAGE, "cache": {"volume": source, **size}})

    assert {"name": "distillchain-cache", **source} in job["spec"]["template"]["spec"]["volumes"]
    trainer = trainer_of(job)
    mounts = {mount["name"]: mount["mountPath"] for mount in trainer["volumeMounts"]}
    env = [(entry["name"], entry.get("value")) for entry in trainer["env"]]
    assert mounts["distillchain-cache"] == dict(env)[CACHE_ENV]
    assert [value for name, value in env if name == CACHE_BYTES_ENV] == limit


@pytest.mark.parametrize("nodes", [2, 10, 11, 256])
@pytest.mark.parametrize("name", ["c" * 63, "1-chain"])
def test_host_names_and_services_of_several_nodes_are_valid(name: str, nodes: int):
    job = job_of(name=name, stages=["s" * 32], template={"image": IMAGE, "parallelism": {"nodes": nodes}})
    assert len(f"{job['metadata']['name']}-{nodes - 1}") <= 63
    service = job["spec"]["template"]["spec"]["subdomain"]
    assert re.fullmatch(r"[a-z][-a-z0-9]{0,61}[a-z0-9]", service)  # DNS-1035, which a Service's name must be
    env = {e["name"]: e.get("value") for e in trainer_of(job)["env"]}
    assert env[RENDEZVOUS_ENV] == f"{job['metadata']['name']}-0.{service}.ml.svc:29500"


def test_the_users_pod_does_not_change_how_nodes_meet():
    trainer = {"name": "trainer", "env": [{"name": RENDEZVOUS_ENV, "value": "x"}, {"name": NODE_ENV, "value": "7"}]}
    pod = {"spec": {"subdomain": "x", "containers": [trainer]}}
    job = job_of(template={"image": IMAGE, "parallelism": {"nodes": 2}, "pod": pod})
    assert job["spec"]["template"]["spec"]["subdomain"] == job["metadata"]["name"]
    env = [(e["name"], e.get("value")) for e in trainer_of(job)["env"]]
    assert [value for name, value in env if name == RENDEZVOUS_ENV] == [
        f"{job['metadata']['name']}-0.{job['metadata']['name']}.ml.svc:29500"
    ]
    assert NODE_ENV not in [name for name, _ in env]
