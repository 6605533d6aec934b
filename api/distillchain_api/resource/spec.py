"""The resource `DistillationChain` (distillchain.io/v1alpha1): its spec, as the user writes it.

Defaults live here once; the CRD, the reference page and the plan all read them from these types. A field is optional
(`None`) where "not said" means "take the template's".
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from distillchain_api import API_VERSION, KIND
from distillchain_api.base import Document
from distillchain_api.cel import cel, fault, rules
from distillchain_api.deep_json import depth_fault
from distillchain_api.faults import BadDocument, Expect, error_of, expected
from distillchain_api.resource.distillation import OBJECTIVE_RULES, distillation_faults
from distillchain_api.resource.evidence import EVIDENCE_RULES, ONE_STAGE, Evidence
from distillchain_api.resource.export import Export
from distillchain_api.resource.gate import GATE_RULES, Gate, TeacherGate, gate_faults
from distillchain_api.resource.label_term import LABEL_RULES, LabelFields, label_faults
from distillchain_api.resource.metadata import ObjectMeta
from distillchain_api.resource.pod import FROM_CLUSTER
from distillchain_api.resource.selection import SELECTION_RULES, SelectionFields, selection_faults
from distillchain_api.resource.size import LARGE_FIELDS_RULE, check_large_fields, large_fields
from distillchain_api.resource.stage import Stage
from distillchain_api.resource.storage import Storage
from distillchain_api.resource.teacher_pass import pass_faults
from distillchain_api.resource.teachers import teachers_faults
from distillchain_api.resource.template import Template
from distillchain_api.resource.training import TrainingOverrides
from distillchain_api.tasks import AnyTask
from distillchain_api.transfer import transfer_of
from distillchain_api.values import Duration, SourceUri

MAX_STAGES = 32  # a bound the API server needs to price the CEL rules; ten is already a long chain
_ONLY_TRAINED = "none without fineTune; only a model that the chain trains is exported: add fineTune, or remove export"


class Teacher(Document):
    """The root teacher."""

    model: SourceUri
    """Checkpoint fine-tuned on the task; with `fineTune`, one that is only pretrained."""
    gate: TeacherGate | None = None
    """What the teacher must reach. Without a gate it must still beat chance."""
    fine_tune: TrainingOverrides | None = None
    """Fine-tune it on the task first, as stage zero; these values override the template's."""
    export: Export | None = None
    """With `fineTune`: what the fine-tuned teacher is exported to. The template's export is for students."""

    @model_validator(mode="after")
    def _export_has_a_stage(self) -> Self:
        if self.export is not None and self.fine_tune is None:
            raise fault("export", expected(self.export.to_document(), _ONLY_TRAINED))
        return self

    model_config = {
        "json_schema_extra": rules(
            cel("!has(self.export) || has(self.fineTune)", f"export: expected {_ONLY_TRAINED}", fieldPath=".export")
        )
    }


class ChainSpec(Document):
    """A chain as the user describes it."""

    task: AnyTask
    storage: Storage
    teacher: Teacher
    template: Template = Template()
    stages: Annotated[
        list[Stage],
        Field(
            min_length=1,
            max_length=MAX_STAGES,
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
        ),
        Expect("a list of 1 to 32 stages"),
    ]
    """The students from large to small; each teaches the next."""
    evidence: Evidence | None = None
    """Also train controls, and say whether the steps in between paid. Empty: the chain alone."""
    max_parallel_jobs: Annotated[int, Field(ge=1, le=100), Expect("a whole number from 1 to 100")] = 1
    """Jobs of this chain at the same time. Stages run one after the other; controls and exports can run at the same
    time. A stage does not wait for an export. `distillchain run` runs one at a time."""
    timeout: Duration | None = None
    """Maximum time that the chain runs without a break, from its first Job to the commit of its last stage. The time
    that pods wait counts; empty: no limit."""
    suspend: bool = False
    """Stop the running stage (its state is saved) and start nothing until false again."""

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        seen: set[str] = set()
        for index, stage in enumerate(self.stages):
            if stage.name in seen:
                raise fault(f"stages[{index}].name", expected(stage.name, "a name no other stage has", "rename one"))
            seen.add(stage.name)
        if faults := list(pass_faults({stage.name: stage.teacher_pass for stage in self.stages})):
            raise error_of(faults)
        return self

    @model_validator(mode="after")
    def _transfer_is_used(self) -> Self:
        alphas = {
            f"stages[{index}].distillation.alpha": stage.distillation.alpha for index, stage in enumerate(self.stages)
        }
        by_default = self.template.distillation.alpha
        if transfer_of(self.task) and all((by_default if alpha is None else alpha) == 0 for alpha in alphas.values()):
            stated = next((field for field, alpha in alphas.items() if alpha == 0), "template.distillation.alpha")
            raise fault(
                stated,
                "got 0, expected above 0 in at least one stage with task.transfer; unlabelled text has only the "
                "teacher's answer to learn from: raise alpha or remove task.transfer",
            )
        return self

    @model_validator(mode="after")
    def _gates_fit_the_metric(self) -> Self:
        gates: dict[str, Gate | TeacherGate] = {
            f"stages[{index}].gate": stage.gate for index, stage in enumerate(self.stages)
        }
        if self.teacher.gate is not None:
            gates = {"teacher.gate": self.teacher.gate, **gates}
        if faults := list(gate_faults(self.task, gates)):
            raise error_of(faults)
        return self

    @model_validator(mode="after")
    def _objectives_fit_the_task(self) -> Self:
        stages = [stage.distillation for stage in self.stages]
        if faults := list(distillation_faults(self.task, self.template.distillation, stages)):
            raise error_of(faults)
        return self

    @model_validator(mode="after")
    def _label_terms_fit_the_task(self) -> Self:
        overrides: dict[str, LabelFields] = {
            f"stages[{index}].training": stage.training for index, stage in enumerate(self.stages)
        }
        if self.teacher.fine_tune is not None:
            overrides["teacher.fineTune"] = self.teacher.fine_tune
        if faults := list(label_faults(self.task, self.template.training, overrides)):
            raise error_of(faults)
        return self

    @model_validator(mode="after")
    def _patience_has_a_selection(self) -> Self:
        overrides: dict[str, SelectionFields] = {
            f"stages[{index}].training": stage.training for index, stage in enumerate(self.stages)
        }
        if self.teacher.fine_tune is not None:
            overrides["teacher.fineTune"] = self.teacher.fine_tune
        if faults := list(selection_faults(self.template.training, overrides)):
            raise error_of(faults)
        return self

    @model_validator(mode="after")
    def _teachers_can_teach(self) -> Self:
        root_model = self.teacher.model if self.teacher.fine_tune is None else None
        distillation = self.template.distillation
        if faults := list(teachers_faults(self.task, distillation, self.stages, root_model=root_model)):
            raise error_of(faults)
        return self

    @model_validator(mode="after")
    def _controls_differ_from_the_chain(self) -> Self:
        if self.evidence and len(self.stages) == 1 and "Direct" not in self.evidence.controls:
            raise fault("evidence.controls", expected(self.evidence.controls, "Direct among them", ONE_STAGE))
        return self

    @model_validator(mode="after")
    def _large_fields_fit_a_variable(self) -> Self:
        fine_tune = [self.teacher.fine_tune] if self.teacher.fine_tune else []
        weights: list[LabelFields] = [self.template.training, *fine_tune, *(stage.training for stage in self.stages)]
        loras = [stage.student.lora for stage in self.stages]
        check_large_fields(large_fields(self.task, weights, loras, self.evidence))
        return self

    model_config = {
        "json_schema_extra": rules(
            *GATE_RULES,
            *OBJECTIVE_RULES,
            *LABEL_RULES,
            *SELECTION_RULES,
            *EVIDENCE_RULES,
            LARGE_FIELDS_RULE,
        )
    }


class DistillationChain(Document):
    """A relay of students: teacher -> stages[0] -> stages[1] -> ..."""

    api_version: Annotated[Literal["distillchain.io/v1alpha1"], Expect(API_VERSION)]
    kind: Annotated[Literal["DistillationChain"], Expect(KIND)]
    metadata: ObjectMeta
    spec: ChainSpec

    @property
    def name(self) -> str:
        """Name of the resource."""
        return self.metadata.name

    @property
    def suspended_by(self) -> str:
        """Why no stage of it may run, as a sentence of its status; empty: they may."""
        if self.metadata.deletion_timestamp is not None:
            return f"being deleted; still kept by finalizer {', '.join(self.metadata.finalizers or [])}"
        return "suspended by spec.suspend" if self.spec.suspend else ""


def parse_chain(document: dict[str, Any], *, source: str = "", from_cluster: bool = False) -> DistillationChain:
    """The chain of a decoded document; fields that the API server adds, such as status, are ignored.

    Args:
        from_cluster: the API server has accepted the document and may be newer than this release, so metadata and
            fields of `pod` that only it knows are no faults.
    Raises: BadDocument with every fault.
    """
    read = {key: value for key, value in document.items() if key != "status"}
    # First: whatever follows would end in a RecursionError.
    if too_deep := depth_fault(read):
        raise BadDocument(source, [too_deep])
    if from_cluster:
        known = {info.alias for info in ObjectMeta.model_fields.values()}
        read["metadata"] = {key: value for key, value in document["metadata"].items() if key in known}
    return DistillationChain.parse(read, source=source, context={FROM_CLUSTER: from_cluster})
