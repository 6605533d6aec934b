"""What a stage is called in the store: the sha256 of all that decides its result.

The digest of a stage holds the digest of the stage before, so it is a Merkle chain that can be computed from the spec
alone, before anything has run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from distillchain_api import CONTRACT_VERSION
from distillchain_api.base import Document
from distillchain_api.resource.distillation import Distillation
from distillchain_api.resource.student import Student
from distillchain_api.resource.training import Training
from distillchain_api.task import Task
from distillchain_api.values import StageDigest

INITIALISATIONS = {"bert_hash": 2}
"""How the trainer initialises new weights of its own model types. Raise a number when that changes: the same spec then
means another student, and only students of this model type get another digest."""


LABEL_FIELDS = ("label_smoothing", "class_weights", "balanced_classes")
"""Fields of `training` that only the loss on the labels reads."""


def canonical_json(value: Any) -> bytes:
    """The only spelling of a JSON value: keys sorted, no spaces, UTF-8, 1.0 written as 1.

    Raises: ValueError for NaN and infinities.
    """
    return json.dumps(
        _canonical(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def _canonical(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _canonical(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(item) for item in value]
    # kubectl and the API server write 1.0 as 1, so a chain from a file and the same one from the cluster must agree.
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def sha256_of(value: Any) -> str:
    """Hex sha256 of the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def identity_of(document: Document) -> dict[str, Any]:
    """What a document contributes to a digest: every field that differs from its default.

    Fields at their default are left out, so a field that a later release adds does not rename what is committed. The
    price: changing a default must raise CONTRACT_VERSION, because the same identity would mean another recipe.
    """
    # By value: a default that is written out counts as left out, because the API server fills defaults in.
    return document.model_dump(mode="json", by_alias=True, exclude_defaults=True, exclude_none=True)


def labels_digest(task: Task, *, student: Student, training: Training) -> StageDigest:
    """Digest of a model that learns from labels alone: stage zero, or the control `Direct`. It has no teacher in it.

    Unlabelled text in the task counts: it makes the training of a control as long as that of the chain's student.
    """
    return _digest(task, student=_identity_of_student(student), training=training)


def distill_digest(
    task: Task,
    *,
    teacher: StageDigest | str,
    further: Sequence[tuple[StageDigest | str, float]] = (),
    student: Student,
    training: Training,
    distillation: Distillation,
) -> StageDigest:
    """Digest of a student; `teacher` is the digest of the stage before, or the root teacher's URI.

    Args:
        further: other teachers, each with its share of the mean. Their order does not matter.
    """
    if distillation.alpha == 1:
        # The loss on the labels has no weight, so what describes it decides nothing.
        training = training.model_copy(update=dict.fromkeys(LABEL_FIELDS))
    return _digest(
        task,
        teacher=teacher,
        student=_identity_of_student(student),
        training=training,
        distillation=identity_of(distillation),
        **({"furtherTeachers": sorted(further)} if further else {}),
    )


def pass_digest(task: Task, *, teacher: StageDigest | str, training: Training) -> StageDigest:
    """Digest of a teacher's pass over the rows of a task; `teacher` is as in `distill_digest`.

    Of the training, only what changes the teacher's outputs counts. So chains with the same teacher and task share it.
    """
    computed = {"precision": training.precision, "tf32": training.tf32}
    recipe = {"contract": CONTRACT_VERSION, "pass": identity_of(task), "teacher": teacher, "computed": computed}
    return StageDigest(sha256_of(recipe))


def _identity_of_student(student: Student) -> dict[str, Any]:
    identity = identity_of(student)
    kind = student.architecture.model_type.replace("-", "_") if student.architecture else ""
    return identity | ({"initialisation": INITIALISATIONS[kind]} if kind in INITIALISATIONS else {})


def _digest(task: Task, *, training: Training, **parts: Any) -> StageDigest:
    # Storage, gates, placement and microBatchSize are missing on purpose: they do not change the result.
    recipe = {"contract": CONTRACT_VERSION, "task": identity_of(task), "training": identity_of(training), **parts}
    return StageDigest(sha256_of(recipe))
