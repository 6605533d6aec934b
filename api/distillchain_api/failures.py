"""How a stage can fail: failure classes, the exit code of each, and what the user does about it.

The operator's podFailurePolicy, the trainer's errors and docs/failures.md all come from this one table.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, metadata
from typing import ClassVar


class FailureClass(StrEnum):
    """Name of a kind of failure in status, termination messages and documentation."""

    WORK_ORDER_INVALID = "WorkOrderInvalid"
    DATA_INVALID = "DataInvalid"
    CHECKPOINT_INVALID = "CheckpointInvalid"
    CHECKPOINT_CORRUPT = "CheckpointCorrupt"
    LABEL_MISMATCH = "LabelMismatch"
    GATE_NOT_MET = "GateNotMet"
    TRAINING_DIVERGED = "TrainingDiverged"
    STORAGE_DENIED = "StorageDenied"
    CRASHED = "Crashed"
    OUT_OF_MEMORY = "OutOfMemory"
    DISK_FULL = "DiskFull"
    STORAGE_UNAVAILABLE = "StorageUnavailable"
    INTERRUPTED = "Interrupted"
    DEADLINE_EXCEEDED = "DeadlineExceeded"
    POD_REJECTED = "PodRejected"


@dataclass(frozen=True)
class Failure:
    """One row of the table. `exit_code` is None where the operator, not the trainer, finds the failure."""

    failure_class: FailureClass
    exit_code: int | None
    what_happened: str
    what_to_do: str


FAILURES = (
    Failure(
        FailureClass.WORK_ORDER_INVALID,
        64,
        "The trainer could not read its work order.",
        "The operator and the trainer image come from different releases; use one release for both.",
    ),
    Failure(
        FailureClass.DATA_INVALID,
        65,
        "A data file is missing, empty or does not match the task.",
        "The message names file, line and column. Correct the file or spec.task.dataset.",
    ),
    Failure(
        FailureClass.CHECKPOINT_INVALID,
        66,
        "A teacher or student cannot be loaded: missing files, pickled weights, remote code, wrong shapes.",
        "Name a checkpoint with config.json, safetensors weights and a tokenizer.",
    ),
    Failure(
        FailureClass.CHECKPOINT_CORRUPT,
        66,
        "A file of a committed checkpoint differs from the sha256 in its manifest.",
        "Restore the named object from a backup, or delete that stage's manifest.json. Then try again: the stage that "
        "made it is verified or trained again.",
    ),
    Failure(
        FailureClass.LABEL_MISMATCH,
        67,
        "The classes of a checkpoint are not those of spec.task.labels.",
        "Use the class names of the checkpoint's id2label, or a checkpoint that is fine-tuned on this task.",
    ),
    Failure(
        FailureClass.GATE_NOT_MET,
        68,
        "A teacher or student was measured and does not meet its gate.",
        "Train it better (teacher.fineTune, more epochs, a smaller step down) or loosen the gate.",
    ),
    Failure(
        FailureClass.TRAINING_DIVERGED,
        68,
        "The loss became NaN or infinite.",
        "Lower training.learningRate, add warmupRatio, or use precision float32.",
    ),
    Failure(
        FailureClass.STORAGE_DENIED,
        69,
        "The store refuses: credentials, certificate, permissions, or no such bucket.",
        "Correct the Secret that spec.storage names, its region, or the service account's role. uri and endpointUrl "
        "cannot be edited: delete the chain and apply it again.",
    ),
    Failure(
        FailureClass.CRASHED,
        70,
        "The trainer ended in an unexpected way.",
        "The stage is retried up to `retries` times. Read `kubectl logs` of the pod; if it is a bug, report it.",
    ),
    Failure(
        FailureClass.OUT_OF_MEMORY,
        71,
        "The container or the GPU ran out of memory.",
        "Lower microBatchSize (the digest stays the same), or raise resources.limits.",
    ),
    Failure(
        FailureClass.DISK_FULL,
        73,
        "The disk of the pod, or of the machine where `distillchain run` trains, is full.",
        "Give the pod more ephemeral storage, or mount a larger volume at /tmp in template.pod. On your own machine, "
        "free the disk that the message names.",
    ),
    Failure(
        FailureClass.STORAGE_UNAVAILABLE,
        74,
        "The store or the hub did not answer, also after several tries.",
        "Check the network and spec.storage.endpointUrl (to change it, delete the chain and apply it again). The stage "
        "is retried up to `retries` times.",
    ),
    Failure(
        FailureClass.INTERRUPTED,
        75,
        "The trainer was asked to stop (eviction, suspend, Ctrl-C) and saved its state.",
        "Nothing: the next pod, or the next `distillchain run`, continues from the saved state. If the chain is "
        "Stalled with this reason, its pods end too often, and the message says why.",
    ),
    Failure(
        FailureClass.DEADLINE_EXCEEDED,
        None,
        "The stage or the chain ran longer than its `timeout`, or made no progress within `progressDeadline`.",
        "Raise the deadline and retry; training continues from the saved state.",
    ),
    Failure(
        FailureClass.POD_REJECTED,
        None,
        "The API server refuses the Job or its pods (template.pod, resources, quota, Pod Security), or nodes do.",
        "The message is that of the API server or the node. Correct spec.template.pod or the namespace's policy.",
    ),
)

EXIT_COMMITTED = 0
EXIT_INTERRUPTED = 75
FATAL_EXIT_CODES = (64, 65, 66, 67, 68, 69)
"""A retry would end the same way, so the Job fails at once."""

EXIT_CODE: dict[FailureClass, int] = {f.failure_class: f.exit_code for f in FAILURES if f.exit_code is not None}
OOM_KILLED_EXIT_CODE = 137  # 128 + SIGKILL, with the container's reason OOMKilled


class StageError(Exception):
    """A stage cannot continue, with a sentence a user can act on. The error trees of store and trainer start here."""

    failure_class: ClassVar[FailureClass] = FailureClass.CRASHED

    @property
    def exit_code(self) -> int:
        """The trainer's exit code, which the Job's podFailurePolicy reads."""
        return EXIT_CODE[self.failure_class]


TROUBLESHOOTING = "docs/troubleshooting.md"
"""The page with a section for each class, as a path in the source tree."""


def troubleshooting(failure_class: FailureClass | str) -> str:
    """Where a failure is explained: `docs/troubleshooting.md#gatenotmet`.

    If the package names a `Documentation` URL (`project.urls` in pyproject.toml), the link points there.
    """
    site = _documentation()
    page = f"{site.rstrip('/')}/troubleshooting/" if site else TROUBLESHOOTING
    return f"{page}#{failure_class.lower()}"


def _documentation() -> str:
    try:
        urls = metadata("distillchain").get_all("Project-URL") or []
    except PackageNotFoundError:  # a checkout on PYTHONPATH
        return ""
    named = {label.strip(): address.strip() for label, _, address in (str(url).partition(",") for url in urls)}
    return named.get("Documentation", "")
