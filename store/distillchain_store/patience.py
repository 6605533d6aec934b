"""How long an outage of the store is waited out before StorageUnavailable is raised.

The right time depends on what would be lost: nothing when a teacher is fetched, hours of a GPU when a trained student
is uploaded. Callers choose with `with_patience`; a store starts with NORMAL_S.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Protocol

QUICK_S = 5.0  # for cleaning up, where the outage may be the reason for it, and for work that is repeated later anyway
NORMAL_S = 30.0  # nothing is lost yet: a longer outage is left to the Job's retries
STOPPING_S = 60.0  # half of the 120 s that the operator gives its pods to stop
TRAINED_S = 1800.0  # hours of computation are in memory and nowhere else

Patience = Callable[[], float]
"""Seconds. Called again during an outage, so that SIGTERM can shorten a wait that has begun."""


class Patient(Protocol):
    """What has patience: a store."""

    patience: Patience


@contextlib.contextmanager
def with_patience(store: Patient, patience: Patience | float) -> Iterator[None]:
    """Within the block, outages of `store` are waited out for `patience`."""
    before = store.patience
    store.patience = patience if callable(patience) else lambda: patience
    try:
        yield
    finally:
        store.patience = before


def patience_for_results(is_stopping: Callable[[], bool]) -> Patience:
    """For results that are not stored anywhere yet: long, but within the grace period of a pod that stops."""
    return lambda: STOPPING_S if is_stopping() else TRAINED_S
