"""Chains, Jobs, pods and answers for tests of the operator: a builder shows only what the case is about."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from distillchain_api.evidence_vertices import without_failed
from distillchain_api.failures import FailureClass
from distillchain_api.graph import Plan, PlannedStage, build_plan
from distillchain_api.resource.evidence import Control, Outcome
from distillchain_api.resource.spec import DistillationChain, parse_chain
from distillchain_api.retry_request import new_retry
from distillchain_api.wire.answer import Committed, Failed, ModelSummary
from distillchain_api.wire.evidence import ControlVerdict, EvidenceOrder, EvidenceSummary, StageVerdict
from distillchain_api.wire.manifest import Metrics
from distillchain_operator.jobs.labels import DIGEST_LABEL, INDEX_ANNOTATION, STAGE_LABEL, SUSPENDED_ANNOTATION
from distillchain_operator.jobs.stage_job import JobDefaults, build_job

IMAGE = "registry.example/distillchain-trainer:0.1"
CHAIN_UID = "11111111-2222-3333-4444-555555555555"
NOON = "2026-01-01T12:00:00Z"


def a_document(name: str = "relay", *, stages: Sequence[str] = ("mini", "tiny"), **spec: Any) -> dict[str, Any]:
    """A chain as a user writes it; `spec` replaces fields of it."""
    return {
        "apiVersion": "distillchain.io/v1alpha1",
        "kind": "DistillationChain",
        "metadata": {"name": name},
        "spec": {
            "task": {
                "type": "TextClassification",
                "dataset": {
                    "uri": "s3://data/sst2",
                    "splits": {"train": "train.tsv", "validation": "dev.tsv"},
                    "text": ["sentence"],
                    "label": "label",
                },
                "labels": ["negative", "positive"],
            },
            "storage": {"uri": "s3://models/distill", "secretRef": {"name": "s3-credentials"}},
            "teacher": {"model": "hf://org/teacher", "gate": {"minMetric": 0.9}},
            "template": {"image": IMAGE},
            "stages": [{"name": stage, "student": {"model": f"hf://org/{stage}"}} for stage in stages],
            **copy.deepcopy(spec),
        },
    }


def own_store(name: str) -> dict[str, Any]:
    """The `storage` of a chain that shares no stage with other chains."""
    return {"uri": f"s3://models/{name}", "secretRef": {"name": "s3-credentials"}}


def a_chain(
    name: str = "relay", *, stages: Sequence[str] = ("mini", "tiny"), generation: int = 1, **spec: Any
) -> DistillationChain:
    """The chain of `a_document` as the API server holds it."""
    document = a_document(name, stages=stages, **spec)
    document["metadata"] |= {"namespace": "ml", "uid": CHAIN_UID, "generation": generation}
    return parse_chain(document)


def a_plan(**chain: Any) -> Plan:
    return build_plan(a_chain(**chain))


def retrying(plan: Plan, *stages: str, token: str = "1", committed_too: bool = False) -> Plan:
    """The plan of the chain once the user has retried these stages."""
    annotations = new_retry(stages, token=token, committed_too=committed_too)
    metadata = plan.chain.metadata.model_copy(update={"annotations": annotations})
    return build_plan(plan.chain.model_copy(update={"metadata": metadata}))


def a_measured(accuracy: float, *, parameters: int = 1_000_000) -> ModelSummary:
    return ModelSummary(
        metrics=Metrics(validation={"accuracy": accuracy, "macroF1": accuracy}),
        parameters=parameters,
        size_bytes=4 * parameters,
    )


def a_commit(
    stage: PlannedStage,
    *,
    accuracy: float = 0.85,
    teacher_accuracy: float = 0.92,
    parameters: int = 1_000_000,
    reused: bool = False,
    attempt: str = "a1",
) -> Committed:
    """The answer of a trainer that committed the stage, or that compared the students of a verdict."""
    without_teacher = stage.work_order.teacher is None
    return Committed(
        stage=stage.name,
        digest=stage.digest,
        attempt=attempt,
        checkpoint=f"s3://models/distill/stages/{stage.digest}/attempts/{attempt}",
        reused=reused,
        pretrained=True,
        student=a_measured(accuracy, parameters=parameters),
        teacher=None if without_teacher else a_measured(teacher_accuracy, parameters=22_700_000),
        elapsed_s=41.26,
        examples_per_second=812.34,
        evidence=a_verdict(stage.work_order.evidence) if stage.work_order.evidence else None,
    )


def a_verdict(order: EvidenceOrder) -> EvidenceSummary:
    """FromRoot, or the only control that is there, is as good as the chain."""
    stage = order.stages[-1]
    names: list[Control] = stage.judged_controls
    numbers = {"difference": 0.002, "low": -0.004, "high": 0.008, "p_value": 0.51, "detectable": 0.0087}
    return EvidenceSummary(
        last=StageVerdict(
            stage=stage.stage,
            metric=0.85,
            seeds=len(stage.students_of(None)),
            rows=872,
            smallest_gain=0.005,
            outcome=Outcome.NOT_WORTH_IT,
            control=names[-1],
            sentence=f"{names[-1]} is as good as the chain",
        ),
        controls=[ControlVerdict(control=name, metric=0.848, **numbers) for name in names],
        missing=[f"{', '.join(order.missing)} failed"] if order.missing else [],
    )


def a_failure(stage: PlannedStage, failure_class: FailureClass, message: str) -> Failed:
    return Failed(stage=stage.name, digest=stage.digest, failure_class=failure_class, message=message)


def a_job(
    plan: Plan,
    stage: str,
    *,
    condition: str = "",
    reason: str = "",
    suspended: bool = False,
    image: str | None = None,
    without: Sequence[str] = (),
    **status: Any,
) -> dict[str, Any]:
    """The Job of a stage as the API server returns it; `condition` is Complete or Failed, `suspended`: by the operator.

    Args:
        without: of the verdict: the students that have failed.
    """
    planned = plan.stage(stage)
    assert planned is not None
    job = build_job(plan.chain, without_failed(planned, set(without)), defaults=JobDefaults(image))
    job["metadata"] |= {"uid": f"uid-of-{job['metadata']['name']}", "creationTimestamp": NOON}
    job["spec"]["suspend"] = suspended
    job["status"] = {"startTime": NOON, **status}
    if suspended:
        job["metadata"]["annotations"] = {SUSPENDED_ANNOTATION: "true"}
        job["status"]["conditions"] = [{"type": "Suspended", "status": "True"}]
    if condition:
        job["status"]["conditions"] = [
            {"type": condition, "status": "True", "reason": reason, "lastTransitionTime": NOON}
        ]
    return job


def a_pod(
    job: dict[str, Any],
    *,
    phase: str = "Running",
    exit_code: int | None = None,
    message: str = "",
    reason: str = "",
    number: int = 0,
    node: int | None = None,
    **status: Any,
) -> dict[str, Any]:
    """A pod of a Job; `reason` is that of its terminated container, `node` its completion index."""
    state: dict[str, Any] = {"running": {"startedAt": NOON}} if phase == "Running" else {}
    if exit_code is not None:
        state = {"terminated": {"exitCode": exit_code, "message": message, "reason": reason, "finishedAt": NOON}}
    labels = job["metadata"]["labels"]
    part = "" if node is None else f"{node}-"
    return {
        "metadata": {
            "name": f"{job['metadata']['name']}-{part}p{number}",
            "uid": f"pod-{part}{number}",
            "annotations": {} if node is None else {INDEX_ANNOTATION: str(node)},
            "creationTimestamp": f"2026-01-01T12:{number // 60:02d}:{number % 60:02d}Z",
            "ownerReferences": [
                {
                    "apiVersion": "batch/v1",
                    "kind": "Job",
                    "name": job["metadata"]["name"],
                    "uid": job["metadata"]["uid"],
                    "controller": True,
                }
            ],
            "labels": {
                "batch.kubernetes.io/job-name": job["metadata"]["name"],
                STAGE_LABEL: labels[STAGE_LABEL],
                DIGEST_LABEL: labels[DIGEST_LABEL],
            },
        },
        "spec": {**job["spec"]["template"]["spec"], "nodeName": "node-7"},
        "status": {"phase": phase, "containerStatuses": [{"name": "trainer", "state": state}], **status},
    }


def a_committed_job(
    plan: Plan, stage: str, *, image: str | None = None, without: Sequence[str] = (), **commit: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """A succeeded Job and its pod with the trainer's answer."""
    planned = plan.stage(stage)
    assert planned is not None
    job = a_job(plan, stage, condition="Complete", image=image, without=without, succeeded=1, completionTime=NOON)
    answer = a_commit(without_failed(planned, set(without)), **commit)
    return job, a_pod(job, phase="Succeeded", exit_code=0, message=answer.to_json())
