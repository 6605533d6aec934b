"""Exports and GPUs: no device is unused while an export is made on the CPU, and no stage waits for it."""

from __future__ import annotations

import pytest

from chain_builders import CHAIN_UID, NOON, a_commit, a_committed_job, a_job, a_plan, a_pod, retrying
from deciding import a_failed_job, committed_status, created, decide, entry
from distillchain_api.failures import FailureClass
from distillchain_operator.decide.actions import CreateJob
from distillchain_operator.decide.late_exports import exporter_of
from distillchain_operator.decide.reconcile import running_pod
from distillchain_operator.jobs.parsing import observe
from distillchain_operator.jobs.stage_job import JobDefaults, build_job
from exporting import FAILURE, ONNX, ended, export_job, exports_ready, order_of

GPU = {"limits": {"nvidia.com/gpu": 1, "cpu": 4}, "requests": {"nvidia.com/gpu": 1, "memory": "8Gi"}}


@pytest.mark.parametrize("place", ["template", "pod template"])
def test_a_late_export_reserves_no_gpu(place: str):
    status = committed_status(a_plan(stages=["mini"]), "mini")
    pod = {"pod": {"spec": {"containers": [{"name": "trainer", "resources": GPU}]}}}
    template = ONNX | ({"resources": GPU} if place == "template" else pod)

    job = export_job(decide(a_plan(stages=["mini"], generation=2, template=template), previous=status))

    (trainer,) = job["spec"]["template"]["spec"]["containers"]
    assert trainer["resources"] == {"limits": {"cpu": 4}, "requests": {"memory": "8Gi"}}


@pytest.mark.parametrize("place", ["template", "pod"])
def test_the_job_of_a_stage_with_a_gpu_makes_no_export_and_another_one_does(place: str):
    """A GPU must not wait for the CPU, nor the next stage."""
    pod = {"spec": {"containers": [{"name": "trainer", "resources": GPU}]}}
    plan = a_plan(
        template={**ONNX, **({"resources": GPU} if place == "template" else {"pod": pod})}, stages=["mini", "tiny"]
    )
    first = decide(plan)
    (create,) = (action for action in first.actions if isinstance(action, CreateJob))
    assert "export" not in order_of(create.job)

    job, committed = a_committed_job(plan, "mini")
    decision = decide(plan, job, pods=(committed,), previous=first.status)
    assert created(decision) == ["tiny"], "the next stage goes first"
    assert entry(decision, "mini").missing_export.phase == "Pending"

    jobs = [a_committed_job(plan, name) for name in ("mini", "tiny")]
    late = decide(plan, *(job for job, _ in jobs), pods=tuple(pod for _, pod in jobs), previous=decision.status)
    order = order_of(export_job(late))
    assert order["exportOnly"]
    assert order["export"] == {"onnx": {}}
    assert order["lastDigest"] == plan.stages[-1].digest, "the report shows the export too"
    assert exports_ready(late.status).reason == "Exporting"


def test_an_edit_of_a_later_stage_is_no_reason_to_export_an_earlier_one_again():
    """The report of the last stage, which an export renews, has another digest then."""
    plans = [a_plan(template={**ONNX, "resources": GPU}, stages=["mini", last]) for last in ("tiny", "nano")]
    assert plans[0].stages[0].digest == plans[1].stages[0].digest
    assert plans[0].stages[1].digest != plans[1].stages[1].digest

    jobs = [build_job(p.chain, exporter_of(p, p.stages[0]), defaults=JobDefaults()) for p in plans]

    assert jobs[0]["metadata"]["name"] == jobs[1]["metadata"]["name"]
    assert order_of(jobs[0])["lastDigest"] != order_of(jobs[1])["lastDigest"]


def test_a_stage_does_not_wait_for_an_export_that_runs():
    plan = a_plan(template={**ONNX, "resources": GPU}, stages=["mini", "tiny"])
    status = committed_status(plan, "mini")
    export = build_job(plan.chain, exporter_of(plan, plan.stages[0]), defaults=JobDefaults())
    export["metadata"] |= {"uid": "uid-of-export", "creationTimestamp": NOON}
    export["status"] = {"startTime": NOON, "active": 1}

    decision = decide(plan, export, pods=(a_pod(export),), previous=status)

    assert created(decision) == ["tiny"]


def test_progress_is_that_of_the_stage_that_trains_and_not_of_an_export_beside_it():
    plan = a_plan(template={**ONNX, "resources": GPU}, stages=["mini", "tiny"])
    export = build_job(plan.chain, exporter_of(plan, plan.stages[0]), defaults=JobDefaults())
    export["metadata"] |= {"uid": "uid-of-export", "creationTimestamp": NOON}
    tiny = a_job(plan, "tiny")

    pod = running_pod(plan, observe(chain_uid=CHAIN_UID, jobs=[export, tiny], pods=[a_pod(export), a_pod(tiny)]))

    assert pod is not None
    assert pod.stage == "tiny"


def test_a_trainer_with_a_gpu_that_is_killed_after_its_commit_has_not_tried_the_export():
    plan = a_plan(template={**ONNX, "resources": GPU}, stages=["mini"])
    job = a_job(plan, "mini", condition="Failed", reason="BackoffLimitExceeded", failed=1)
    pod = a_pod(job, phase="Failed", exit_code=137, reason="OOMKilled", message=a_commit(plan.stages[0]).to_json())

    decision = decide(plan, job, pods=(pod,))

    assert [action.is_export for action in decision.actions if isinstance(action, CreateJob)] == [True]


@pytest.mark.parametrize("device", ["nvidia.com/mig-1g.10gb", "gpu.intel.com/i915", "google.com/tpu"])
def test_a_late_export_reserves_no_device_of_another_name(device: str):
    status = committed_status(a_plan(stages=["mini"]), "mini")
    resources = {"limits": {device: 1, "hugepages-2Mi": "4Mi"}, "requests": {device: 1, "ephemeral-storage": "1Gi"}}
    plan = a_plan(stages=["mini"], generation=2, template=ONNX | {"resources": resources})

    job = export_job(decide(plan, previous=status))

    (trainer,) = job["spec"]["template"]["spec"]["containers"]
    assert trainer["resources"] == {"limits": {"hugepages-2Mi": "4Mi"}, "requests": {"ephemeral-storage": "1Gi"}}


def test_a_late_export_claims_no_device_but_those_of_other_containers():
    status = committed_status(a_plan(stages=["mini"]), "mini")
    sidecar = {"name": "proxy", "image": "x", "resources": {"claims": [{"name": "nic"}]}}
    claims = [{"name": name, "resourceClaimTemplateName": name} for name in ("gpu", "nic")]
    pod = {"spec": {"resourceClaims": claims, "containers": [sidecar]}}
    template = ONNX | {"pod": pod, "resources": {"claims": [{"name": "gpu"}]}}

    job = export_job(decide(a_plan(stages=["mini"], generation=2, template=template), previous=status))

    spec = job["spec"]["template"]["spec"]
    assert [container["resources"] for container in spec["containers"]] == [{}, sidecar["resources"]]
    assert spec["resourceClaims"] == claims[1:]


@pytest.mark.parametrize("is_running", [True, False])
def test_a_damaged_checkpoint_is_not_committed_again_by_the_job_of_its_export(is_running: bool):
    """That one answers that the stage is committed although it could not read the checkpoint either."""
    plan = a_plan(template={**ONNX, "resources": GPU})
    mini, mini_pod = a_committed_job(plan, "mini")
    tiny, tiny_pod = a_failed_job(plan, "tiny", FailureClass.CHECKPOINT_CORRUPT)
    exported = export_job(decide(plan, mini, tiny, pods=(mini_pod, tiny_pod), previous=committed_status(plan, "mini")))
    answer = a_commit(plan.stages[0], reused=True).model_copy(update={"export_failure": FAILURE})
    export, export_pod = (exported, a_pod(exported)) if is_running else ended(exported, answer=answer)
    export["metadata"]["creationTimestamp"] = "2026-01-01T13:00:00Z"  # after tiny has failed
    jobs, pods = (mini, tiny, export), (mini_pod, tiny_pod, export_pod)
    failed = decide(plan, *jobs, pods=pods, previous=committed_status(plan, "mini")).status

    decision = decide(retrying(plan, "tiny"), *jobs, pods=pods, previous=failed)

    assert {action.name for action in decision.actions} == {job["metadata"]["name"] for job in jobs}
    (create,) = decide(retrying(plan, "tiny"), previous=decision.status).actions
    assert (create.stage, create.is_export) == ("mini", False)
