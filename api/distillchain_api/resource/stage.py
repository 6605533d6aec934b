"""One stage of a chain, as the user writes it; what it leaves out comes from the template."""

from __future__ import annotations

from typing import Self

from pydantic import model_validator

from distillchain_api.base import Document
from distillchain_api.cel import cel, fault, rules
from distillchain_api.faults import expected
from distillchain_api.resource.distillation import DistillationOverrides
from distillchain_api.resource.export import Export
from distillchain_api.resource.gate import Gate
from distillchain_api.resource.job import JobTemplate, QueueName
from distillchain_api.resource.parallelism import Parallelism
from distillchain_api.resource.pod import PodTemplate
from distillchain_api.resource.resources import Resources
from distillchain_api.resource.student import Student
from distillchain_api.resource.teacher_pass import TeacherPass
from distillchain_api.resource.teachers import ROOT, Teachers
from distillchain_api.resource.template import Retries
from distillchain_api.resource.training import PositiveInt, TrainingOverrides
from distillchain_api.values import Duration, StageName, Text

TEACHER_STAGE = ROOT
"""Name of stage zero, which `teacher.fineTune` adds; no other stage may have this name."""


class Stage(Document):
    """One step down: the stage before (or the root teacher) teaches this student."""

    name: StageName
    """Unique within the chain; part of the Job's name."""
    student: Student
    training: TrainingOverrides = TrainingOverrides()
    micro_batch_size: PositiveInt | None = None
    """Rows of one forward pass on one device; empty: the template's."""
    parallelism: Parallelism | None = None
    """Replaces the template's parallelism as a whole."""
    distillation: DistillationOverrides = DistillationOverrides()
    teachers: Teachers | None = None
    """Several teachers; their probabilities are averaged. One of them is the stage before. Empty: only the stage
    before."""
    gate: Gate = Gate()
    image: Text | None = None
    """Trainer image of this stage; empty: the template's."""
    resources: Resources | None = None
    """Replaces the template's resources as a whole."""
    pod: PodTemplate | None = None
    """Replaces the template's pod as a whole."""
    job: JobTemplate | None = None
    """Replaces the template's job as a whole."""
    queue_name: QueueName | None = None
    """LocalQueue of this stage; empty: the template's."""
    retries: Retries | None = None
    """Crashes before the chain fails; empty: the template's."""
    timeout: Duration | None = None
    """Maximum run time of the stage over all its pods, without the time that they wait; empty: the template's."""
    progress_deadline: Duration | None = None
    """Maximum time between two steps; empty: the template's."""
    pending_deadline: Duration | None = None
    """Maximum time that its pods may wait to start; empty: the template's."""
    save_interval: Duration | None = None
    """Maximum training time that a crash can lose; empty: the template's."""
    export: Export | None = None
    """Replaces the template's export as a whole; `{}`: no export."""
    teacher_pass: TeacherPass | None = None
    """Compute the teacher's answers for this stage in a separate Job first, with other resources; the stage then
    does not load the teacher. Empty: the stage computes them itself."""

    @model_validator(mode="after")
    def _name_is_free(self) -> Self:
        if self.name == TEACHER_STAGE:
            raise fault(
                "name", expected(self.name, "another name", "`teacher` is the stage that teacher.fineTune adds")
            )
        return self

    model_config = {
        "json_schema_extra": rules(
            cel(
                f"self.name != '{TEACHER_STAGE}'",
                "name: `teacher` is the stage that teacher.fineTune adds",
                fieldPath=".name",
            )
        )
    }
