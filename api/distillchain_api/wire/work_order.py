"""The work order: all that one trainer needs to know about its one stage. Holds no secret."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from distillchain_api import CONTRACT_VERSION
from distillchain_api.base import Document
from distillchain_api.faults import Expect
from distillchain_api.resource.distillation import Distillation
from distillchain_api.resource.encryption import Encryption
from distillchain_api.resource.export import Export
from distillchain_api.resource.gate import Gate, TeacherGate
from distillchain_api.resource.parallelism import ResolvedParallelism
from distillchain_api.resource.student import Student
from distillchain_api.resource.tracking import Tracking
from distillchain_api.resource.training import Training
from distillchain_api.tasks import AnyTask
from distillchain_api.wire.evidence import EvidenceOrder

WORK_ORDER_ENV = "DISTILLCHAIN_WORK_ORDER"
"""Environment variable that holds the work order as JSON."""
MAX_WORK_ORDER_BYTES = 131_072 - len(f"{WORK_ORDER_ENV}=") - 1  # Linux' MAX_ARG_STRLEN, which counts name and final NUL
"""Longest work order that an environment variable holds."""
ATTEMPT_ENV = "DISTILLCHAIN_ATTEMPT"
"""Environment variable with a name unique to this pod; the trainer makes one up when it is not set."""
TERMINATION_PATH_ENV = "DISTILLCHAIN_TERMINATION_PATH"
"""Environment variable with the file of the termination message; /dev/termination-log when it is not set."""
WORK_DIRECTORY_ENV = "DISTILLCHAIN_WORK_DIRECTORY"
"""Environment variable with the folder for files in the making; a temporary one when it is not set."""
RENDEZVOUS_ENV = "DISTILLCHAIN_RENDEZVOUS"
"""Environment variable of each pod of a stage on several nodes: host:port of the pod of node 0, where all meet."""
NODE_ENV = "JOB_COMPLETION_INDEX"
"""Environment variable with the number of the pod's node, from 0; Kubernetes sets it in the pods of an Indexed Job.

The pod of another node exits with 0 only after node 0 has committed. Kubernetes does not start a pod again that exited
with 0, so if node 0 had to start again, it would wait for the other forever.
"""
RENDEZVOUS_PORT = 29500
"""Port of RENDEZVOUS_ENV; torch's own process group uses the next one."""
CACHE_ENV = "DISTILLCHAIN_CACHE"
"""Environment variable with a folder for fetched models and data, which stages and pods share; empty: none."""
CACHE_BYTES_ENV = "DISTILLCHAIN_CACHE_BYTES"
"""Environment variable with the most bytes of that folder; empty: no limit."""
GPUS_ENV = "DISTILLCHAIN_GPUS"
"""Environment variable: how many GPUs the container asks for; empty: none."""
ALLOW_CPU_ENV = "DISTILLCHAIN_ALLOW_CPU"
"""Environment variable; `1`: a container that asks for GPUs may train on the CPU if torch sees none of them."""
KEEP_TEXTS_ENV = "DISTILLCHAIN_KEEP_TEXTS"
"""Environment variable; `0`: no text of validation rows is copied into store and report. Empty or `1`: a few."""

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$"), Expect("64 hexadecimal digits")]


class StorageAddress(Document):
    """Where the store is; credentials come from the environment alone."""

    uri: str
    endpoint_url: str | None = None
    region: str | None = None
    encryption: Encryption | None = None


class TeacherRef(Document):
    """Who teaches: a checkpoint (`model`: the root) or a committed stage (`digest`)."""

    name: str
    """What messages call it: `teacher`, or the name of the stage."""
    model: str | None = None
    digest: Digest | None = None
    gate: TeacherGate | None = None
    """Only with `model`: a committed stage has passed its own gate."""
    pass_digest: Digest | None = None
    """Its committed pass: the stage reads what the teacher answered and does not load it."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.model is None) == (self.digest is None):
            raise ValueError("expected either model or digest")
        return self


class FurtherTeacher(Document):
    """Another teacher of the same student."""

    teacher: TeacherRef
    share: Annotated[float, Field(gt=0, lt=1)]
    """Its share of the mean of all teachers."""


class WorkOrder(Document):
    """One stage, complete: the same order gives the same student wherever it is carried out."""

    contract: Annotated[
        Literal[2], Expect(f"contract {CONTRACT_VERSION}", "use operator and trainer image of one release")
    ] = 2
    chain: str
    """namespace/name of the chain, for logs and manifests."""
    stage: str
    field: str
    """Path of the stage in the spec, such as `spec.stages[2]`: messages refer the user to it."""
    digest: Digest
    task: AnyTask
    storage: StorageAddress
    teacher: TeacherRef | None = None
    """None: `student` learns from labels alone, as in stage zero and the control Direct. With `task.transfer` an epoch
    then repeats labelled rows until it has as many as that of a student that also learns from the unlabelled text."""
    further_teachers: list[FurtherTeacher] = []
    """Teachers beside `teacher`, which has the rest of the mean."""
    student: Student
    training: Training
    micro_batch_size: Annotated[int, Field(ge=1)] | None = None
    """Rows of one forward pass on one device; None: all of a step. In no digest: it moves only dropout masks."""
    parallelism: ResolvedParallelism = ResolvedParallelism()
    """The processes that train the stage together. In no digest."""
    distillation: Distillation | None = None
    """None exactly when `teacher` is."""
    gate: Gate = Gate()
    save_interval_s: Annotated[int, Field(ge=1)] = 600
    export: Export = Export()
    """In no digest: it is made from the committed weights."""
    export_only: bool = False
    """The stage is committed: make its export and nothing else, and fail if the commit is missing."""
    last_digest: Digest | None = None
    """With `export_only`: of the chain's last stage, whose report is written again when the export is made."""
    teacher_pass: bool = False
    """Make the pass of the teacher over the rows of this stage, and train nothing."""
    evidence: EvidenceOrder | None = None
    """Compare these committed students, and train nothing; `digest` is of the comparison."""
    tracking: Tracking = Tracking()
    """In no digest: it only watches."""
    final: bool = False
    """The chain's last stage: its trainer writes the chain's report. Decides no result, so it is in no digest."""

    @property
    def shares(self) -> list[float]:
        """The parts of `teacher` and `further_teachers` in the mean."""
        further = [other.share for other in self.further_teachers]
        return [1.0 - sum(further), *further]

    @property
    def asks_teacher(self) -> bool:
        """Whether the student learns from what its teachers answer for the training rows."""
        return self.distillation is not None and self.distillation.alpha > 0

    @model_validator(mode="after")
    def _teacher_and_distillation(self) -> Self:
        if (self.teacher is None) != (self.distillation is None):
            raise ValueError("expected teacher and distillation together, or neither")
        return self

    def to_document(self) -> dict[str, Any]:
        """The order as plain JSON data; fields that are in no digest are left out at their defaults."""
        document = super().to_document()
        if self.export.name is None:
            del document["export"]
        if not self.export_only:
            del document["exportOnly"]
        if not self.teacher_pass:
            del document["teacherPass"]
        if self.tracking.is_off:
            del document["tracking"]
        if not self.further_teachers:
            del document["furtherTeachers"]
        if self.parallelism == ResolvedParallelism():
            del document["parallelism"]
        return document
