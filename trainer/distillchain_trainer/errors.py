"""How the trainer can fail, each class with its failure class; exit codes come from the contract's table.

TrainerError
|- WorkOrderInvalid     64
|- DataInvalid          65
|- CheckpointInvalid    66
|  `- ExportInvalid
|- LabelMismatch        67
|- GateNotMet           68
|- TrainingDiverged     68
`- OutOfMemory          71
   `- MicroBatchTooLarge
StopRequested (BaseException) 75: no library's `except Exception` may swallow it
`- LostPeers
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator

from distillchain_api.failures import FailureClass, StageError
from distillchain_store.errors import FULL, causes, disk_full


class TrainerError(StageError):
    """A failure of the trainer itself; those of the store are in distillchain_store.errors."""


class WorkOrderInvalid(TrainerError):
    """The work order cannot be read."""

    failure_class = FailureClass.WORK_ORDER_INVALID


class PortTaken(TrainerError):
    """The processes of a stage cannot meet at their port. Another node may do, so it is a crash and tried again."""


class NoGpu(TrainerError):
    """torch sees no GPU although the container asks for some. Another node may do, so it is a crash and tried again."""


class DataInvalid(TrainerError):
    """A data file is missing, empty or not what the task says."""

    failure_class = FailureClass.DATA_INVALID


class CheckpointInvalid(TrainerError):
    """A checkpoint cannot be loaded."""

    failure_class = FailureClass.CHECKPOINT_INVALID


class ExportInvalid(CheckpointInvalid):
    """A committed model cannot be exported, or its export computes something else."""


class LabelMismatch(TrainerError):
    """The classes of a checkpoint are not those of the task."""

    failure_class = FailureClass.LABEL_MISMATCH


class GateNotMet(TrainerError):
    """A model was measured and is not good enough to continue."""

    failure_class = FailureClass.GATE_NOT_MET


class TrainingDiverged(TrainerError):
    """The loss became NaN or infinite."""

    failure_class = FailureClass.TRAINING_DIVERGED


class OutOfMemory(TrainerError):
    """Host or GPU memory ran out."""

    failure_class = FailureClass.OUT_OF_MEMORY


class MicroBatchTooLarge(OutOfMemory):
    """A GPU ran out of memory within a pass of a student that is split, which this process alone cannot repeat.

    Attributes:
        rows: of a smaller micro-batch, with which the launcher starts all processes again.
    """

    def __init__(self, message: str, *, rows: int) -> None:
        super().__init__(message)
        self.rows = rows


class StopRequested(BaseException):
    """SIGTERM or SIGINT came; `step` is where the next attempt continues."""

    def __init__(self, step: int = 0) -> None:
        super().__init__("interrupted")
        self.step = step


class LostPeers(StopRequested):
    """Another process of the stage failed, ended or did not answer in time; its own process answers for that.

    Ends this process as interrupted, so that only the process that failed decides whether a retry counts.
    """

    def __init__(self, message: str) -> None:
        super().__init__()
        self.args = (message,)


@contextlib.contextmanager
def reading(what: str, invalid: type[StageError]) -> Iterator[None]:
    """Within the block, raises `invalid` with a message about `what` if a file cannot be read."""
    try:
        yield
    except OSError as error:
        # Left as it is: translate_unforeseen makes it DiskFull, which is no fault of the file.
        if error.errno in FULL:
            raise
        why = error.strerror or first_line(error)
        raise invalid(f"{what} cannot be read ({why}); name a place that the trainer's user may read") from error


def first_line(error: BaseException) -> str:
    """The first line of a library's message."""
    if isinstance(error, KeyError):
        return f"KeyError: {error}"  # the key alone says nothing
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    # A line that ends so says nothing without the next one.
    sentence = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    # 300 characters are enough for a sentence, and some libraries quote a whole document.
    return sentence[:300]


def translate_unforeseen(error: BaseException) -> StageError | None:
    """The failure behind an exception of a library, anywhere in its causes; None where a retry may help."""
    for cause in causes(error):
        # Our own error, which a library has wrapped.
        if isinstance(cause, StageError):
            return cause
        if isinstance(cause, OSError) and cause.errno in FULL:
            return disk_full(str(cause.filename or _working_places()))
        text = str(cause)
        if "No space left on device" in text:  # safetensors and torch raise errors of their own
            return disk_full(_working_places())
        if "c10::BFloat16 without overflow" in text:  # DeBERTa's mask (transformers 5.24)
            return CheckpointInvalid(
                "the code of a model of this stage fails in bfloat16, because it uses a number that bfloat16 does not "
                "have; use training.precision: float32"
            )
        remedy = "lower microBatchSize (the digest stays the same), or raise resources.limits"
        if is_gpu_memory_short(cause):
            return OutOfMemory(f"the GPU ran out of memory; {remedy}")
        if isinstance(cause, MemoryError) or "DefaultCPUAllocator: can't allocate memory" in text:
            return OutOfMemory(f"the container ran out of memory; {remedy}")
    return None


# Texts of what torch does not allocate by itself: libraries' handles and workspaces, and buffers of NCCL.
GPU_MEMORY = re.compile(
    r"CUDA out of memory|CUDA error: out of memory|CU(BLAS|DNN|SOLVER|SPARSE)_STATUS_ALLOC_FAILED"
    r"|Cuda failure (\d+ )?'out of memory'"
)


def is_gpu_memory_short(error: BaseException) -> bool:
    """Whether an error of torch says that a GPU has too little memory; also where a library on the GPU says so."""
    # By name, because this module is imported where torch is not.
    is_of_torch = type(error).__name__ == "OutOfMemoryError"
    return is_of_torch or (isinstance(error, RuntimeError) and GPU_MEMORY.search(str(error)) is not None)


def _working_places() -> str:
    """Where the trainer and its libraries write, for errors of a write, which name no file."""
    # Imported late: it takes long, and this module is imported before SIGTERM is handled.
    from distillchain_api.wire.work_order import WORK_DIRECTORY_ENV

    work = os.environ.get(WORK_DIRECTORY_ENV) or os.environ.get("TMPDIR") or "the folder of temporary files"
    return f"{work} or in the hub client's cache"


# Texts of gloo and NCCL for a collective that another rank did not complete. Gloo has no class of its own for them.
PEER_FAILURES = re.compile(
    "Connection (closed|reset) by peer|Timed out waiting|Application timeout caused pair closure|Broken pipe"
    "|[Ww]atchdog caught collective|NCCL communicator was aborted|remote process exited"
)


def is_peer_failure(error: BaseException) -> bool:
    """Whether another rank ended this one: LostPeers, or an error of a collective that torch itself started."""
    if isinstance(error, LostPeers):
        return True
    if translate_unforeseen(error) is not None:
        return False
    for cause in causes(error):
        # By name, because this module is imported where torch is not.
        is_of_torch = "DistError" in {base.__name__ for base in type(cause).__mro__}
        is_of_gloo = type(cause) is RuntimeError and PEER_FAILURES.search(str(cause)) is not None
        if is_of_torch or is_of_gloo:
            return True
    return False
