"""How the store can fail. Each class carries its failure class, and with it the exit code.

StoreError
|- StorageDenied        69  the store refuses: credentials, rights, certificate, no such bucket; retrying is useless
|- StorageUnavailable   74  the store does not answer, or refuses for now; retrying may help
|- DiskFull             73
|- CheckpointCorrupt    66  a committed file differs from its manifest
|- OtherRelease         66  the manifest has the contract of another release
`- ObjectMissing        70  callers translate it: they know what the object was for
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

from distillchain_api.failures import FailureClass, StageError

POD_ENV = "KUBERNETES_SERVICE_HOST"  # Kubernetes sets it in every container
AGAIN = "try again (distillchain retry, or run without a cluster)"
"""The remedy that trains a damaged stage again, for messages."""
# EDQUOT: the quota of a file system is used up. For the user that is a full disk as well.
FULL = (errno.ENOSPC, errno.EDQUOT)


class StoreError(StageError):
    """An operation on the store failed."""


class StorageDenied(StoreError):
    """The store refuses, and will refuse again."""

    failure_class = FailureClass.STORAGE_DENIED


class StorageUnavailable(StoreError):
    """The store or the hub did not answer, or refused for now. A later attempt may succeed."""

    failure_class = FailureClass.STORAGE_UNAVAILABLE


class DiskFull(StoreError):
    """No space is left, on the volume of the store or on the local disk."""

    failure_class = FailureClass.DISK_FULL


class CheckpointCorrupt(StoreError):
    """A committed file differs from its manifest."""

    failure_class = FailureClass.CHECKPOINT_CORRUPT


class OtherRelease(StoreError):
    """A manifest with the contract of another release: intact, but this release cannot read it."""

    failure_class = FailureClass.CHECKPOINT_INVALID


class ObjectMissing(StoreError):
    """There is no object of that name."""


def disk_full(place: str) -> DiskFull:
    """The error of a full disk at a place, with the remedy for a pod, or for a machine without one."""
    if os.environ.get(POD_ENV):
        remedy = "give the pod more ephemeral storage, or free the volume"
    else:
        remedy = "free space there, or choose another disk (TMPDIR for temporary files, HF_HOME for models of the hub)"
    return DiskFull(f"no space left on the disk at {place}; {remedy}")


def causes(error: BaseException, *, with_suppressed: bool = False) -> Iterator[BaseException]:
    """An exception and its causes, the root last.

    Args:
        with_suppressed: also those that `raise ... from None` hides, as the connection pool of the hub client does.
    """
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        # The context too: botocore raises its errors within `except`, without `from`.
        cause = cause.__cause__ or (cause.__context__ if with_suppressed or not cause.__suppress_context__ else None)
