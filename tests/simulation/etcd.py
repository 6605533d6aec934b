"""The versions and changes of all stored objects, the time, and what went wrong."""

from __future__ import annotations

import random
from collections import defaultdict
from datetime import UTC, datetime
from typing import Any, NoReturn

START = datetime(2026, 1, 1, 12, tzinfo=UTC)
KINDS = ("chains", "jobs", "pods")
Document = dict[str, Any]


class Broken(AssertionError):
    """The operators did something that they must never do."""


class Etcd:
    """What all namespaces share.

    Attributes:
        changes: by kind: version, namespace, type and object.
        states: of each object, by its UID.
        fault: the first invariant that was broken. The controller reports errors of a look to status and may be killed
            meanwhile, so an exception alone could be lost.
    """

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.now = START
        self.version = 1
        self.created_pods = 0
        self.changes: dict[str, list[tuple[int, str, str, Document]]] = {kind: [] for kind in KINDS}
        self.states: defaultdict[str, list[Document]] = defaultdict(list)
        self.fault: Broken | None = None

    @property
    def seconds(self) -> float:
        return (self.now - START).total_seconds()

    def record(self, kind: str, namespace: str, change: str, document: Document) -> Document:
        """Gives an object the next version, and reports its change to watches."""
        self.version += 1
        stored = document | {"metadata": document["metadata"] | {"resourceVersion": str(self.version)}}
        self.changes[kind].append((self.version, namespace, change, stored))
        self.states[stored["metadata"]["uid"]].append(stored)
        return stored

    def fail(self, what: str) -> NoReturn:
        """An invariant is broken.

        Raises: Broken.
        """
        self.fault = self.fault or Broken(what)
        raise self.fault

    def check(self) -> None:
        """Raises: Broken if an invariant was broken, also if the operator has caught that."""
        if self.fault:
            raise self.fault
