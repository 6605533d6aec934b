"""One vertex of a plan: a Job with its digest, its work order, and where it runs. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from distillchain_api.base import Document
from distillchain_api.digests import distill_digest, labels_digest, pass_digest
from distillchain_api.resource.distillation import resolve_distillation
from distillchain_api.resource.export import Export
from distillchain_api.resource.gate import Gate
from distillchain_api.resource.job import JobTemplate
from distillchain_api.resource.parallelism import Parallelism, gpus_of, resolve
from distillchain_api.resource.spec import DistillationChain
from distillchain_api.resource.stage import TEACHER_STAGE, Stage
from distillchain_api.resource.student import Student
from distillchain_api.resource.teacher_pass import SUFFIX as PASS_SUFFIX
from distillchain_api.resource.teacher_pass import TeacherPass
from distillchain_api.resource.teachers import StageTeacher, shares_of
from distillchain_api.resource.template import Template
from distillchain_api.resource.training import Training
from distillchain_api.task import Task
from distillchain_api.transfer import without_transfer
from distillchain_api.values import StageDigest, duration_seconds
from distillchain_api.wire.work_order import FurtherTeacher, StorageAddress, TeacherRef, WorkOrder

TRAINER_CONTAINER = "trainer"
"""Name of the container that trains; the operator adds it to the user's pod unless it is there."""

DocumentT = TypeVar("DocumentT", bound=Document)


@dataclass(frozen=True)
class PlannedStage:
    """One stage: what it makes (`digest`, `work_order`) and where it runs (the rest)."""

    name: str
    digest: StageDigest
    work_order: WorkOrder
    image: str | None  # None: the pod template's or the operator's default
    resources: dict[str, Any] = field(default_factory=dict)
    pod: dict[str, Any] = field(default_factory=dict)
    pod_field: str = ""
    """Where the spec states `pod`."""
    job: JobTemplate = field(default_factory=JobTemplate)
    queue_name: str | None = None
    """LocalQueue of Kueue that admits its Job."""
    parallelism: Parallelism = field(default_factory=Parallelism)
    """As the spec states it; the work order has it resolved."""
    parallelism_field: str = ""
    """Where the spec states `parallelism`."""
    gpus: int = 0
    """GPUs that the spec gives the container `trainer` of each pod."""
    retries: int = 3
    timeout_s: int | None = None
    pending_deadline_s: int | None = None
    progress_deadline_s: int | None = None
    needs: tuple[str, ...] = ()
    """Names of the vertices that must be committed before this one starts."""
    priority: int = 0
    """Ready vertices of a lower number start first."""
    is_evidence: bool = False
    """It is beside the chain, whose phase does not depend on it: a control, a further seed, or the verdict on them."""

    @property
    def is_pass(self) -> bool:
        """It is the pass of a teacher and makes no student."""
        return self.work_order.teacher_pass

    @property
    def is_verdict(self) -> bool:
        """It compares the students of the others and makes none."""
        return self.work_order.evidence is not None

    @property
    def teacher_digest(self) -> StageDigest | None:
        """Digest of the stage that must be committed first; None: the root teacher is there already."""
        teacher = self.work_order.teacher
        return StageDigest(teacher.digest) if teacher and teacher.digest else None


def fine_tune_stage(chain: DistillationChain) -> PlannedStage:
    """Stage zero: the root teacher, fine-tuned on the labels."""
    spec, template = chain.spec, chain.spec.template
    order = labels_order(
        chain,
        name=TEACHER_STAGE,
        field="spec.teacher",
        # No teacher answers for unlabelled text here. So stage zero stays committed when such text is added.
        task=without_transfer(spec.task),
        student=Student(model=spec.teacher.model),
        training=merge(template.training, spec.teacher.fine_tune),
    )
    # Stage zero makes the root teacher, so it has that gate. Otherwise the first student's stage measures the teacher
    # and has the gate in its TeacherRef. The template's export is for students, which users serve.
    own = {"gate": merge(Gate(), spec.teacher.gate), "export": spec.teacher.export or Export()}
    return place(order.model_copy(update=own), template, stage=None)


def labels_order(
    chain: DistillationChain, *, name: str, field: str, task: Task, student: Student, training: Training
) -> WorkOrder:
    """The work order of a model that learns from labels alone: no teacher, gate or export."""
    template = chain.spec.template
    return WorkOrder(
        chain=f"{chain.metadata.namespace}/{chain.name}",
        stage=name,
        field=field,
        digest=labels_digest(task, student=student, training=training),
        task=task,
        storage=_address(chain),
        student=student,
        training=training,
        micro_batch_size=template.micro_batch_size,
        save_interval_s=duration_seconds(template.save_interval),
        tracking=template.tracking,
    )


def student_stage(
    chain: DistillationChain,
    stage: Stage,
    *,
    field_path: str,
    before: PlannedStage | None,
    earlier: Sequence[PlannedStage],
    final: bool,
) -> PlannedStage:
    """A student that learns from the stage before, or from the root teacher.

    Args:
        field_path: of the stage in the spec.
        before: None: the root teacher, which the chain does not fine-tune.
        earlier: the vertices that may be its further teachers.
        final: its trainer writes the chain's report.
    """
    spec, template = chain.spec, chain.spec.template
    # Merged before the digest: it does not matter whether the template or the stage states a value.
    training = merge(template.training, stage.training)
    distillation = resolve_distillation(spec.task, template.distillation, stage.distillation)
    # With alpha 0 the labels alone count, and a text without a label would have no loss.
    task = spec.task if distillation.alpha > 0 else without_transfer(spec.task)
    teacher = (
        TeacherRef(name=before.name, digest=before.digest)
        if before
        else TeacherRef(name=TEACHER_STAGE, model=spec.teacher.model, gate=spec.teacher.gate)
    )
    further = _further_teachers(chain, stage, teacher, earlier)
    order = WorkOrder(
        chain=f"{chain.metadata.namespace}/{chain.name}",
        stage=stage.name,
        field=field_path,
        digest=distill_digest(
            task,
            # By the teacher's recipe, not its weights: the plan must be known before anything has run (decision 3).
            teacher=before.digest if before else spec.teacher.model,
            further=[(other.teacher.digest or other.teacher.model or "", other.share) for other in further],
            student=stage.student,
            training=training,
            distillation=distillation,
        ),
        task=task,
        storage=_address(chain),
        teacher=teacher,
        further_teachers=further,
        student=stage.student,
        training=training,
        micro_batch_size=stage.micro_batch_size or template.micro_batch_size,
        distillation=distillation,
        gate=stage.gate,
        save_interval_s=duration_seconds(stage.save_interval or template.save_interval),
        export=template.export if stage.export is None else stage.export,
        tracking=template.tracking,
        final=final,
    )
    # Of a damaged checkpoint, the operator learns that one of these teachers has it, and lets each verify its own.
    needs = [before.name] if before else []
    needs += [other.teacher.name for other in further if other.teacher.digest]
    return place(order, template, stage=stage, needs=tuple(needs))


def _further_teachers(
    chain: DistillationChain, stage: Stage, before: TeacherRef, earlier: Sequence[PlannedStage]
) -> list[FurtherTeacher]:
    """The teachers of a stage beside the stage before, each with its share of the mean."""
    stated = stage.teachers or []
    found = []
    for teacher, share in zip(stated, shares_of(stated), strict=True):
        if teacher.stage != before.name:
            found.append(FurtherTeacher(teacher=_teacher_ref(chain, teacher, earlier), share=share))
    return found


def _teacher_ref(chain: DistillationChain, teacher: StageTeacher, earlier: Sequence[PlannedStage]) -> TeacherRef:
    for planned in earlier:
        if planned.name == teacher.stage:
            return TeacherRef(name=planned.name, digest=planned.digest)
    if teacher.stage is not None:
        # The root teacher, which the chain does not fine-tune. The first stage has checked its gate.
        return TeacherRef(name=TEACHER_STAGE, model=chain.spec.teacher.model)
    assert teacher.model is not None
    return TeacherRef(name=teacher.model, model=teacher.model)


def pass_stage(chain: DistillationChain, stage: Stage, where: TeacherPass, planned: PlannedStage) -> PlannedStage:
    """The pass of a stage's teacher; it needs what the stage needs."""
    order = planned.work_order
    assert order.teacher is not None
    digest = pass_digest(order.task, teacher=order.teacher.digest or order.teacher.model or "", training=order.training)
    update = {
        "stage": f"{stage.name}{PASS_SUFFIX}",
        "digest": digest,
        "teacher_pass": True,
        # These are of the student.
        "gate": Gate(),
        "export": Export(),
        "final": False,
        "micro_batch_size": None,
        # They are asked by the stage itself.
        "further_teachers": [],
    }
    own = {name: value for name in TeacherPass.model_fields if (value := getattr(where, name)) is not None}
    placed = place(
        order.model_copy(update=update), chain.spec.template, stage=stage.model_copy(update=own), needs=planned.needs
    )
    fields = {name: f"{order.field}.teacherPass.{name}" for name in ("pod", "parallelism") if name in own}
    return replace(
        placed,
        pod_field=fields.get("pod", placed.pod_field),
        parallelism_field=fields.get("parallelism", placed.parallelism_field),
    )


def after_pass(planned: PlannedStage, pass_over: PlannedStage) -> PlannedStage:
    """The stage once the pass is a vertex before it."""
    order = planned.work_order
    assert order.teacher is not None
    teacher = order.teacher.model_copy(update={"pass_digest": pass_over.digest})
    return replace(
        planned,
        work_order=order.model_copy(update={"teacher": teacher}),
        needs=(*planned.needs, pass_over.name),
    )


def place(order: WorkOrder, template: Template, *, stage: Stage | None, needs: tuple[str, ...] = ()) -> PlannedStage:
    """The stage's own placement, else the template's. Pod, resources and parallelism are replaced as a whole."""
    image, resources, pod, pod_field = template.image, template.resources, template.pod, "spec.template.pod"
    parallelism, parallelism_field = template.parallelism, "spec.template.parallelism"
    retries, timeout, pending_deadline = template.retries, template.timeout, template.pending_deadline
    progress_deadline = template.progress_deadline
    job, queue_name = template.job, template.queue_name
    if stage is not None:
        image = stage.image or image
        resources = resources if stage.resources is None else stage.resources
        if stage.pod is not None:
            pod, pod_field = stage.pod, f"{order.field}.pod"
        if stage.parallelism is not None:
            parallelism, parallelism_field = stage.parallelism, f"{order.field}.parallelism"
        job = template.job if stage.job is None else stage.job
        queue_name = stage.queue_name or queue_name
        # Not `or`: 0 retries are a valid choice.
        retries = retries if stage.retries is None else stage.retries
        timeout = stage.timeout or timeout
        pending_deadline = stage.pending_deadline or pending_deadline
        progress_deadline = stage.progress_deadline or progress_deadline
    stated = resources.to_document() if resources else {}
    gpus = gpus_of(stated or _trainer_resources(pod or {}))
    return PlannedStage(
        name=order.stage,
        digest=StageDigest(order.digest),
        work_order=order.model_copy(update={"parallelism": resolve(parallelism, gpus=gpus)}),
        image=image,
        resources=stated,
        pod=pod or {},
        pod_field=pod_field,
        job=job,
        queue_name=queue_name,
        parallelism=parallelism,
        parallelism_field=parallelism_field,
        gpus=gpus,
        retries=retries,
        timeout_s=duration_seconds(timeout) if timeout else None,
        pending_deadline_s=duration_seconds(pending_deadline) if pending_deadline else None,
        progress_deadline_s=duration_seconds(progress_deadline) if progress_deadline else None,
        needs=needs,
    )


def _trainer_resources(pod: Mapping[str, Any]) -> Mapping[str, Any]:
    """Resources of the container `trainer` in a PodTemplateSpec."""
    containers: list[dict[str, Any]] = (pod.get("spec") or {}).get("containers") or []
    trainer = next((container for container in containers if container.get("name") == TRAINER_CONTAINER), {})
    resources: Mapping[str, Any] = trainer.get("resources") or {}
    return resources


def merge(defaults: DocumentT, overrides: Document | None) -> DocumentT:
    """`defaults` with every value that `overrides` states."""
    # None is the default of every override, so it means `not stated`.
    stated = overrides.model_dump(exclude_none=True) if overrides else {}
    return defaults.model_copy(update=stated)


def _address(chain: DistillationChain) -> StorageAddress:
    storage = chain.spec.storage
    return StorageAddress(
        uri=storage.uri, endpoint_url=storage.endpoint_url, region=storage.region, encryption=storage.encryption
    )
