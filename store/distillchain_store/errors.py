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

from distillchain_api.failures import FailureClass, StageError

DISK_REMEDY = "give the pod more ephemeral storage, or free the volume"
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
