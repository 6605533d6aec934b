"""The Kubernetes Events for a change of status; each is created once, when the change is written. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from distillchain_api.failures import FailureClass
from distillchain_api.resource.status import Admission, ChainStatus, StageStatus
from distillchain_api.retry_request import parse_retry
from distillchain_api.wire.answer import fit
from distillchain_operator.jobs.labels import (
    EVENT_FAILURE_CLASS_ANNOTATION,
    EVENT_JOB_ANNOTATION,
    EVENT_STAGE_ANNOTATION,
)
from distillchain_operator.status.chain_status import waits_for_turn

QUEUED: dict[Admission | None, str] = {
    "WaitingForPeer": "WaitingForPeer",
    "WaitingForQuota": "StageQueued",
    "Requeued": "StageRequeued",
}
NOTE_BYTES = 1000  # the API server allows 1024 in the note of an Event


@dataclass(frozen=True)
class ChainEvent:
    """One Event about a chain."""

    reason: str
    message: str
    type: Literal["Normal", "Warning"] = "Normal"
    annotations: Mapping[str, str] = field(default_factory=dict)


def transitions(old: ChainStatus, new: ChainStatus) -> list[ChainEvent]:
    """The Events for what changed between two statuses of a chain."""
    events = [
        replace(event, annotations=_annotations(entry, entry.job, entry.failure_class))
        for entry in new.entries
        for event in _of_stage(old.stage_named(entry.name), entry)
    ]
    events += [
        replace(event, annotations=_annotations(entry, *_job_and_failure_of_export(entry)))
        for entry in new.entries
        for event in _of_export(old.stage_named(entry.name), entry)
    ]
    events += _of_request(old, new)
    was_suspended, is_suspended = old.phase == "Suspended", new.phase == "Suspended"
    if is_suspended and not was_suspended:
        why = "spec.suspend is true, or the chain is being deleted"
        events.append(ChainEvent("Suspended", f"{why}: the running stage saves its state and stops"))
    if was_suspended and new.phase in ("Pending", "Running"):
        events.append(ChainEvent("Resumed", "spec.suspend is false again"))
    events += _of_turn(old, new)
    if new.phase == "Succeeded" and old.phase != "Succeeded":
        events.append(ChainEvent("ChainSucceeded", fit(new.message or "", NOTE_BYTES)))
    if _invalid(new) and _invalid(old) != _invalid(new):
        events.append(ChainEvent("InvalidSpec", fit(_invalid(new), NOTE_BYTES), "Warning"))
    return events


def _of_request(old: ChainStatus, new: ChainStatus) -> list[ChainEvent]:
    """The Event of a retry request that names a stage with nothing to do, such as a typo."""
    # A new chain may have the annotation already.
    if not old.entries or not new.handled_retry or new.handled_retry == old.handled_retry:
        return []
    request = parse_retry(new.handled_retry)
    failed = {entry.name for entry in old.entries if "Failed" in (entry.phase, _phase_of_export(entry))}
    needless = request.stages - ({entry.name for entry in new.entries} if request.committed_too else failed)
    if not needless:
        return []
    what = "the chain has no" if request.committed_too else "no failure of"
    sentence = f"retry: {what} stage {', '.join(sorted(needless))}; failed: {', '.join(sorted(failed)) or 'none'}"
    return [ChainEvent("RetryIgnored", fit(sentence, NOTE_BYTES), "Warning")]


def _of_turn(old: ChainStatus, new: ChainStatus) -> list[ChainEvent]:
    if waits_for_turn(old):
        return []
    # An entry that failed says why the API server refused its Job.
    waiting = (entry for entry in new.entries if entry.admission == "WaitingForTurn" and entry.phase != "Failed")
    return [ChainEvent("WaitingForTurn", fit(entry.message or "", NOTE_BYTES)) for entry in waiting][:1]


def _phase_of_export(entry: StageStatus) -> str:
    return entry.missing_export.phase if entry.missing_export else ""


def _job_and_failure_of_export(entry: StageStatus) -> tuple[str | None, FailureClass | None]:
    missing = entry.missing_export
    return (missing.job, missing.failure_class) if missing else (entry.job, None)


def _annotations(entry: StageStatus, job: str | None, failure_class: FailureClass | None) -> dict[str, str]:
    known = {
        EVENT_STAGE_ANNOTATION: entry.name,
        EVENT_JOB_ANNOTATION: job,
        EVENT_FAILURE_CLASS_ANNOTATION: failure_class,
    }
    return {key: str(value) for key, value in known.items() if value}


def _invalid(status: ChainStatus) -> str:
    stalled = next((c for c in status.conditions if c.type == "Stalled" and c.status == "True"), None)
    return stalled.message if stalled and stalled.reason == "InvalidSpec" else ""


def _of_stage(old: StageStatus | None, new: StageStatus) -> list[ChainEvent]:
    if new.next_start_at and (old is None or old.next_start_at != new.next_start_at):
        reason = _reason_of_pause(old, new)
        return [ChainEvent(reason, fit(f"stage {new.name}: {new.message}", NOTE_BYTES), "Warning")]
    # After an edit the same phase is news again: the stage has another digest or Job.
    same = old is not None and old.digest == new.digest and old.job == new.job
    if new.admission in QUEUED and not (old is not None and same and old.admission == new.admission):
        what = f"Job {new.job}" if new.admission == "WaitingForQuota" else new.message
        return [ChainEvent(QUEUED[new.admission], fit(f"stage {new.name}: {what}", NOTE_BYTES))]
    if old is not None and same and old.phase == new.phase:
        return []
    # A resumed Job was announced when it started; `Resumed` is the event of the chain.
    if new.phase == "Running" and not (old is not None and same and old.phase == "Suspended"):
        return [ChainEvent("StageStarted", f"stage {new.name}: Job {new.job}")]
    if new.phase == "Committed" and not (old is not None and old.digest == new.digest and old.phase == "Committed"):
        return _committed(new)
    if new.phase == "Failed":
        sentence = f"stage {new.name}: {new.failure_class}: {new.message}"
        return [ChainEvent("StageFailed", fit(sentence, NOTE_BYTES), "Warning")]
    return []


def _reason_of_pause(old: StageStatus | None, new: StageStatus) -> str:
    if new.missed_starts != (old.missed_starts if old else None):
        return "PendingDeadlineExceeded"
    if new.stalls != (old.stalls if old else None):
        return "ProgressDeadlineExceeded"
    return "RestartsPaused"


def _of_export(old: StageStatus | None, new: StageStatus) -> list[ChainEvent]:
    """The Event of an export that was made after the commit, or that failed."""
    before, missing = old.missing_export if old else None, new.missing_export
    if missing is not None and missing.next_start_at and missing.next_start_at != (before and before.next_start_at):
        return [ChainEvent("ExportPaused", fit(f"stage {new.name}: {missing.message}", NOTE_BYTES), "Warning")]
    if missing is not None and missing.phase == "Failed" and missing != before:
        sentence = f"stage {new.name} stays committed: {missing.failure_class}: {missing.message}"
        return [ChainEvent("ExportFailed", fit(sentence, NOTE_BYTES), "Warning")]
    if missing is None and before is not None and new.exports:
        uris = ", ".join(export.uri for export in new.exports)
        return [ChainEvent("StageExported", fit(f"stage {new.name} is exported: {uris}", NOTE_BYTES))]
    return []


def _committed(stage: StageStatus) -> list[ChainEvent]:
    if stage.verdict is not None:
        sentence = f"{stage.verdict.outcome}: {stage.verdict.sentence}"
        return [ChainEvent("EvidenceReady", fit(sentence, NOTE_BYTES))]
    if stage.checkpoint is None:
        return [ChainEvent("StageCommitted", f"stage {stage.name} is not needed: all that needs it is committed")]
    how = "was already committed" if stage.reused else "is committed"
    note = f"stage {stage.name} {how}: {stage.checkpoint}"
    if stage.message is None:
        events = [ChainEvent("StageCommitted", fit(note, NOTE_BYTES))]
    else:
        events = [ChainEvent("StageCommitted", fit(f"{note}; it {stage.message}", NOTE_BYTES), "Warning")]
    if stage.warnings:
        events.append(ChainEvent("StageWarnings", _warnings_note(stage), "Warning"))
    return events


def _warnings_note(stage: StageStatus) -> str:
    """How many warnings a stage has, and as many of them as an Event holds."""
    count = len(stage.warnings)
    return fit(f"stage {stage.name}: {count} warning{'s' * (count > 1)}: {'; '.join(stage.warnings)}", NOTE_BYTES)
