"""The resource `DistillationChain` (distillchain.io/v1alpha1): its spec, as the user writes it.

Defaults live here once; the CRD, the reference page and the plan all read them from these types. A field is optional
(`None`) where "not said" means "take the template's".
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from distillchain_api import API_VERSION, KIND
from distillchain_api.base import Document
from distillchain_api.cel import cel, fault, rules
from distillchain_api.deep_json import depth_fault
from distillchain_api.faults import BadDocument, Expect, error_of, expected
from distillchain_api.resource.cache import Cache
from distillchain_api.resource.distillation import (
    OBJECTIVE_RULES,
    DistillationOverrides,
    TemplateDistillation,
    distillation_faults,
)
from distillchain_api.resource.encryption import Encryption
from distillchain_api.resource.evidence import EVIDENCE_RULES, ONE_STAGE, Evidence
from distillchain_api.resource.export import EXPORT_RULES, Export, export_faults
from distillchain_api.resource.from_teacher import FromTeacher
from distillchain_api.resource.gate import GATE_RULES, Gate, TeacherGate, gate_faults
from distillchain_api.resource.job import JobTemplate, QueueName
from distillchain_api.resource.label_term import (
    BLOCK_RULE,
    LABEL_RULES,
    ClassWeights,
    LabelFields,
    LabelSmoothing,
    label_faults,
)
from distillchain_api.resource.lora import Lora
from distillchain_api.resource.metadata import ObjectMeta
from distillchain_api.resource.parallelism import Parallelism
from distillchain_api.resource.pod import FROM_CLUSTER, PodTemplate
from distillchain_api.resource.resources import Resources
from distillchain_api.resource.selection import (
    PATIENCE_RULE,
    SELECTION_RULES,
    Patience,
    Selection,
    SelectionFields,
    selection_faults,
)
from distillchain_api.resource.size import (
    CONFIG_FIELDS,
    LARGE_FIELDS_RULE,
    check_large_fields,
    checked_config,
    config_schema,
    large_fields,
)
from distillchain_api.resource.teacher_pass import TeacherPass, pass_faults
from distillchain_api.resource.teachers import ROOT, Teachers, teachers_faults
from distillchain_api.resource.tracking import Tracking
from distillchain_api.tasks import AnyTask
from distillchain_api.transfer import transfer_of
from distillchain_api.values import (
    DNS_SUBDOMAIN,
    HTTP_ADDRESS,
    URI_RULE,
    Duration,
    LongDuration,
    Share,
    SourceUri,
    StageName,
    StorageUri,
    Text,
    cel_same_folder,
    without_slash,
)

TEACHER_STAGE = ROOT
"""Name of stage zero, which `teacher.fineTune` adds; no other stage may have this name."""

MAX_URL_CHARS = 1000
MAX_STAGES = 32  # a bound the API server needs to price the CEL rules; ten is already a long chain


class SecretRef(Document):
    """A Secret in the chain's namespace with AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and perhaps AWS_SESSION_TOKEN."""

    name: Annotated[str, Field(min_length=1, max_length=253, pattern=DNS_SUBDOMAIN)]
    """Name of the Secret."""


ENCRYPTION_OF_FILES = "expected nothing with file://, whose volume decides; remove it"


class Storage(Document):
    """Where checkpoints, teacher logits and resumable state are kept."""

    uri: Annotated[
        StorageUri,
        Field(
            json_schema_extra=rules(
                URI_RULE,
                cel(cel_same_folder(), "storage.uri is immutable: checkpoints do not move; create a new chain"),
            )
        ),
    ]
    """s3://bucket/prefix, or file:///path on a volume that every stage mounts. Immutable."""
    endpoint_url: (
        Annotated[
            str,
            Field(pattern=f"^{HTTP_ADDRESS}$", max_length=MAX_URL_CHARS),
            AfterValidator(without_slash),
            Expect("http(s)://host[:port] without user or password", "credentials belong into secretRef"),
        ]
        | None
    ) = None
    """Endpoint of an S3-compatible store; empty for AWS. Immutable."""
    region: Text | None = None
    """Region of the bucket; empty: the region of the environment."""
    encryption: Encryption | None = None
    """Encryption of what is written to s3://; empty: as the bucket is configured. In no digest."""
    secret_ref: SecretRef | None = None
    """Credentials; empty: the pod's service account (IRSA, workload identity)."""

    @model_validator(mode="after")
    def _encryption_is_of_s3(self) -> Self:
        if self.encryption and not self.uri.startswith("s3://"):
            raise fault("encryption", ENCRYPTION_OF_FILES)
        return self

    model_config = {
        "json_schema_extra": rules(
            cel(
                "has(self.endpointUrl) == has(oldSelf.endpointUrl) && "
                f"(!has(self.endpointUrl) || {cel_same_folder('.endpointUrl')})",
                "storage.endpointUrl is immutable: checkpoints do not move; create a new chain",
            ),
            cel(
                "!has(self.encryption) || self.uri.startsWith('s3://')",
                f"encryption: {ENCRYPTION_OF_FILES}",
                fieldPath=".encryption",
            ),
        )
    }


PositiveInt = Annotated[int, Field(ge=1, le=1_000_000), Expect("a whole number from 1 to 1000000")]
LearningRate = Annotated[
    float, Field(gt=0, le=1), Expect("a learning rate above 0 and at most 1", "for example 1.0e-4")
]
NonNegative = Annotated[float, Field(ge=0, le=1000), Expect("a number from 0 to 1000")]
Seed = Annotated[int, Field(ge=0, le=2**31 - 1), Expect("a whole number from 0 to 2147483647")]
Scheduler = Literal["linear", "cosine", "constant"]
Precision = Literal["float32", "bfloat16"]


class TrainingOverrides(Document):
    """Training values of one stage; fields that are not set come from the template."""

    epochs: PositiveInt | None = None
    """Passes over the training split."""
    batch_size: PositiveInt | None = None
    """Rows of one optimizer step, over all devices."""
    learning_rate: LearningRate | None = None
    """Peak learning rate of AdamW."""
    weight_decay: NonNegative | None = None
    """Weight decay of AdamW."""
    warmup_ratio: Share | None = None
    """Share of the steps in which the learning rate rises."""
    scheduler: Scheduler | None = None
    """Schedule of the learning rate after the warm-up."""
    max_grad_norm: NonNegative | None = None
    """Gradients are clipped to this norm; 0: not clipped."""
    precision: Precision | None = None
    """float32, or bfloat16 autocast."""
    tf32: bool | None = None
    """Whether float32 matrix products on a GPU may use TF32: faster, with a mantissa of 10 bits. With bfloat16 only the
    head has such products."""
    seed: Seed | None = None
    """Seed of data order, dropout and new weights."""
    label_smoothing: LabelSmoothing | None = None
    """Share of each label that is spread evenly over all classes, in the loss on the labels."""
    class_weights: ClassWeights | None = None
    """Weights of the classes in the loss on the labels, by name; replaces the template's as a whole."""
    balanced_classes: bool | None = None
    """Weigh each class by rows / (classes * rows of the class), in the loss on the labels."""
    selection: Selection | None = None
    """Which epoch's weights are committed: those of the last one, or of the best one on validation."""
    patience: Patience | None = None
    """Stop after so many epochs in a row that do not improve; only with selection: Best. 0: train all epochs."""

    model_config = {"json_schema_extra": rules(BLOCK_RULE)}


class Training(Document):
    """How a student is trained."""

    epochs: PositiveInt = 3
    """Passes over the training split."""
    batch_size: PositiveInt = 32
    """Rows of one optimizer step, over all devices; `microBatchSize` says how many fit one device at a time."""
    learning_rate: LearningRate = 1e-4
    """Peak learning rate of AdamW."""
    weight_decay: NonNegative = 0.0
    """Weight decay of AdamW."""
    warmup_ratio: Share = 0.0
    """Share of the steps in which the learning rate rises."""
    scheduler: Scheduler = "linear"
    """Schedule of the learning rate after the warm-up."""
    max_grad_norm: NonNegative = 1.0
    """Gradients are clipped to this norm; 0: not clipped."""
    precision: Precision = "float32"
    """float32, or bfloat16 autocast."""
    tf32: bool = False
    """Whether float32 matrix products on a GPU may use TF32: faster, with a mantissa of 10 bits. With bfloat16 only the
    head has such products."""
    seed: Seed = 42
    """Seed of data order, dropout and new weights."""
    label_smoothing: LabelSmoothing = 0.0
    """Share of each label that is spread evenly over all classes, in the loss on the labels."""
    class_weights: ClassWeights | None = None
    """Weights of the classes in the loss on the labels, by name; a class that is not named weighs 1."""
    balanced_classes: bool = False
    """Weigh each class by rows / (classes * rows of the class), in the loss on the labels."""
    selection: Selection = "Last"
    """Which epoch's weights are committed: those of the last one, or of the best one by `task.metric` on validation; of
    equal epochs the earlier one. Test is never used for this choice."""
    patience: Patience = 0
    """Stop after so many epochs in a row that do not improve; only with selection: Best. 0: train all epochs. The
    learning rate keeps the schedule of `epochs`."""

    model_config = {"json_schema_extra": rules(BLOCK_RULE, PATIENCE_RULE)}


Config = Annotated[
    dict[str, Any],
    Field(max_length=CONFIG_FIELDS, json_schema_extra={"additionalProperties": config_schema()}),
    AfterValidator(checked_config),
    Expect(f"a mapping of {CONFIG_FIELDS} fields at most"),
]
Retries = Annotated[int, Field(ge=0, le=100), Expect("a whole number from 0 to 100")]


class Template(Document):
    """Defaults of every stage. Only training and distillation decide the result; the other fields say where it runs."""

    image: Text | None = None
    """Trainer image; empty: the operator's default."""
    resources: Resources | None = None
    """Resources of the container `trainer`, as in a Pod."""
    pod: PodTemplate | None = None
    """Your PodTemplateSpec (`metadata` and `spec`), merged over the operator's; the container `trainer` is written into
    it."""
    job: JobTemplate = JobTemplate()
    queue_name: QueueName | None = None
    """LocalQueue of Kueue in the chain's namespace. The Jobs are created suspended, and Kueue starts them when the
    queue has quota; empty: they start at once."""
    training: Training = Training()
    micro_batch_size: PositiveInt | None = None
    """Rows of one forward pass on one device; empty: batchSize. Not in the digest: it moves only dropout masks."""
    parallelism: Parallelism = Parallelism()
    cache: Cache | None = None
    distillation: TemplateDistillation = TemplateDistillation()
    retries: Retries = 3
    """Crashes of one stage before the chain fails; evictions and interruptions do not count."""
    timeout: Duration | None = None
    """Maximum run time of a stage over all its pods, without the time that they wait to start; empty: no limit."""
    progress_deadline: Duration | None = None
    """Maximum time between two steps of a training, or two batches of rows that a model answers. Then the Job is
    deleted and created again after a pause, which uses one of `retries`; empty: no limit."""
    pending_deadline: Duration | None = None
    """Maximum time that a pod of a stage may wait to start. Then the Job is deleted, so that the other pods hold no GPU
    in vain, and created again after a pause; empty: no limit."""
    ttl_after_finished: LongDuration | None = None
    """How long a Job that has ended is kept with its pods and their logs; at least a minute. Status has its result or
    failure by then, and nothing runs again because it is deleted; empty: until the chain is deleted."""
    save_interval: Duration = "10m"
    """Maximum training time that a crash can lose."""
    export: Export = Export()
    """What each student is exported to. A teacher that `fineTune` trains is not exported."""
    tracking: Tracking = Tracking()


class Architecture(Document):
    """A model with new weights."""

    model_type: Text
    """bert-hash (in the trainer), or a model type of transformers such as bert."""
    config: Config = Field(default_factory=dict)
    """Fields of its config.json that differ from the model type's defaults; unknown ones are refused."""


LORA_WITH_NEW_WEIGHTS = "expected none beside architecture, whose new weights would stay untrained; remove it"


class Student(Document):
    """Where a student starts: a checkpoint (`model`), some layers of its teacher (`fromTeacher`), or new weights
    (`architecture` with a `tokenizer`)."""

    model: SourceUri | None = None
    """Pretrained checkpoint; a head for the task is added if it has none."""
    from_teacher: FromTeacher | None = None
    """Some layers of its teacher instead, with the teacher's head and tokenizer."""
    architecture: Architecture | None = None
    """New weights instead; flagged `pretrained: false` everywhere."""
    tokenizer: SourceUri | None = None
    """Checkpoint whose tokenizer is used; required with `architecture`, otherwise the model's own by default."""
    lora: Lora | None = None

    @model_validator(mode="after")
    def _one_start(self) -> Self:
        starts = {"model": self.model, "fromTeacher": self.from_teacher, "architecture": self.architecture}
        stated = [name for name, start in starts.items() if start is not None]
        if len(stated) != 1:
            raise fault(
                "",
                f"got {' and '.join(stated) or 'none'}, expected one of model, fromTeacher and architecture; a "
                "pretrained model is the better start",
            )
        if self.architecture and not self.tokenizer:
            raise fault("tokenizer", "missing, expected a checkpoint with a tokenizer beside architecture; add it")
        if self.from_teacher and self.tokenizer:
            raise fault("tokenizer", expected(self.tokenizer, "nothing beside fromTeacher", "remove it"))
        if self.architecture and self.lora:
            raise fault("lora", LORA_WITH_NEW_WEIGHTS)
        return self

    model_config = {
        "json_schema_extra": rules(
            cel(
                "[has(self.model), has(self.fromTeacher), has(self.architecture)].exists_one(stated, stated)",
                "expected one of model, fromTeacher and architecture",
            ),
            cel("!has(self.architecture) || has(self.tokenizer)", "architecture needs a tokenizer beside it"),
            cel(
                "!has(self.fromTeacher) || !has(self.tokenizer)",
                "tokenizer: expected nothing beside fromTeacher; remove it",
                fieldPath=".tokenizer",
            ),
            cel("!has(self.architecture) || !has(self.lora)", f"lora: {LORA_WITH_NEW_WEIGHTS}", fieldPath=".lora"),
        )
    }


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
    """Several teachers, of which the stage before is one: their probabilities are averaged. Empty: the stage before
    alone."""
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
    """Compute the teacher's answers for this stage in a Job of its own first, with other resources; the stage then does
    not load the teacher. Empty: the stage computes them itself."""

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


class Teacher(Document):
    """The root teacher."""

    model: SourceUri
    """Checkpoint fine-tuned on the task; with `fineTune`, one that is only pretrained."""
    gate: TeacherGate | None = None
    """What it must reach. Without a gate it must still beat chance."""
    fine_tune: TrainingOverrides | None = None
    """Fine-tune it on the task first, as stage zero; these values override the template's."""


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
    """Jobs of this chain at the same time. Stages run one after the other; what can run beside them are controls and
    exports. `distillchain run` runs one at a time."""
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

    @model_validator(mode="after")
    def _exports_fit_the_task(self) -> Self:
        exports = {f"stages[{index}].export": stage.export for index, stage in enumerate(self.stages)}
        if faults := list(export_faults(self.task, {"template.export": self.template.export, **exports})):
            raise error_of(faults)
        return self

    model_config = {
        "json_schema_extra": rules(
            *GATE_RULES,
            *OBJECTIVE_RULES,
            *LABEL_RULES,
            *SELECTION_RULES,
            *EVIDENCE_RULES,
            *EXPORT_RULES,
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
