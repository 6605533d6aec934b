"""How the store can fail; each class carries its failure class.

StoreError
|- StorageDenied        69  the store refuses: credentials, permissions, no such bucket
|- StorageUnavailable   74  the store does not answer, also after several tries
|- DiskFull             73
|- CheckpointCorrupt    66  a committed file differs from its manifest
|- OtherRelease         66  the manifest has the contract of another release
`- ObjectMissing        70  callers translate it: they know what the object was for
"""

from __future__ import annotations

import errno

from distillchain_api.failures import FailureClass, StageError

DISK_REMEDY = "give the pod more ephemeral storage, or free the volume"
FULL = (errno.ENOSPC, errno.EDQUOT)


class StoreError(StageError):
    """An operation on the store failed."""


class StorageDenied(StoreError):
    """The store refused."""

    failure_class = FailureClass.STORAGE_DENIED


class StorageUnavailable(StoreError):
    """The store or the hub did not answer, also after several tries."""

    failure_class = FailureClass.STORAGE_UNAVAILABLE


class DiskFull(StoreError):
    """No space left."""

    failure_class = FailureClass.DISK_FULL


class CheckpointCorrupt(StoreError):
    """A committed file differs from its manifest."""

    failure_class = FailureClass.CHECKPOINT_CORRUPT


class OtherRelease(StoreError):
    """A manifest with the contract of another release: intact, but not readable by this one."""

    failure_class = FailureClass.CHECKPOINT_INVALID


class ObjectMissing(StoreError):
    """There is no object of that name."""
