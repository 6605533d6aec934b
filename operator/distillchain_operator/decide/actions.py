"""What reconcile decides: actions on Jobs and what belongs to them, and the status of the chain once they are done."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from distillchain_api.resource.status import ChainStatus

SOON_S = 0.1  # until the next look at a chain that has something to do without an event


@dataclass(frozen=True)
class CreateJob:
    """Create the Job of a stage, after a dry run."""

    stage: str
    job: dict[str, Any]
    is_export: bool = False
    """It exports a stage that is committed."""


@dataclass(frozen=True)
class CreatePart:
    """Create the Service or NetworkPolicy of a Job on several nodes."""

    stage: str
    manifest: dict[str, Any]


@dataclass(frozen=True)
class DeleteJob:
    """Delete a Job, its pods first."""

    name: str
    uid: str
    why: str
    asked_once: bool = False
    """Once the status of this look is written, no later look asks for it again."""


@dataclass(frozen=True)
class SetSuspend:
    """Stop the pods of a Job (they save their state), or let it resume."""

    name: str
    uid: str
    suspend: bool


@dataclass(frozen=True)
class RemoveSuspendNote:
    """Remove the note that this operator suspended a Job, without resuming it."""

    name: str
    uid: str


@dataclass(frozen=True)
class NotePods:
    """Record on a Job which pods it has had."""

    name: str
    uid: str
    pods: tuple[str, ...]
    """Short UIDs of all of them."""


@dataclass(frozen=True)
class SetTtl:
    """Let Kubernetes delete a Job so many seconds after its end."""

    name: str
    uid: str
    seconds: int


Action = CreateJob | CreatePart | DeleteJob | SetSuspend | RemoveSuspendNote | NotePods | SetTtl


@dataclass(frozen=True)
class Decision:
    """What to do, and the status once it is done."""

    actions: tuple[Action, ...]
    status: ChainStatus
    has_more_starts: bool = False
    """Another Job could start in place of one that is refused."""
    waits_for_turn: bool = False
    """It is in line, also if the status says why the API server refused its Job instead."""
    look_again_s: float | None = None
    """Seconds after which the status changes even if nothing happens."""
