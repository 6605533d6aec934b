"""Reads what the store knows about a chain. What is missing or altered is recorded, and the rest is still read."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from distillchain_api.failures import FailureClass
from distillchain_api.layout import pass_manifest_key, resume_prefix
from distillchain_api.resource.status import StagePhase
from distillchain_api.wire.export import ExportRecord
from distillchain_api.wire.manifest import Manifest
from distillchain_api.wire.pass_manifest import PassManifest
from distillchain_api.wire.records import HISTORY_FILE, HistoryPoint
from distillchain_report.commits import CommittedFiles
from distillchain_report.section import StageAnswers
from distillchain_report.sections import section_of
from distillchain_store.commit import read_manifest
from distillchain_store.errors import CheckpointCorrupt, OtherRelease
from distillchain_store.exports import read_export
from distillchain_store.passes import read_pass
from distillchain_store.store import StoredObject


class ListableStore(Protocol):
    """As much of a store as a report needs."""

    @property
    def uri(self) -> str:
        """Where it is."""

    def read(self, key: str) -> bytes:
        """The content of an object. Raises: ObjectMissing."""

    def list_objects(self, prefix: str) -> list[StoredObject]:
        """All objects whose key starts with `prefix`."""


@dataclass(frozen=True)
class WantedStage:
    """A stage of the chain, with what its status on the cluster says about it if there is one.

    Attributes:
        phase: None: there is no status and only the store can tell. A committed stage can be Failed too: its commit is
            damaged, or it misses its present gate.
        reused: already committed when the chain ran; None: unknown.
    """

    name: str
    digest: str
    phase: StagePhase | None = None
    message: str | None = None
    failure_class: FailureClass | None = None
    reused: bool | None = None


@dataclass(frozen=True)
class LoadedStage:
    """A stage and everything about it that could be read.

    Attributes:
        manifest: None: not committed.
        checkpoint: where it is now; a store may have been copied, moved or mounted elsewhere since the commit.
        saved: for a stage that is not committed: the latest step with a saved state, and the total number of steps.
        answers: the predictions, as the section of its task type reads them.
        export: its model in other formats.
        teacher_pass: the Job that has measured and asked its teacher; None: the stage itself did.
        unreadable: why there is no manifest although the store holds one.
        missing: one sentence for each thing that the report lacks.
    """

    wanted: WantedStage
    manifest: Manifest | None = None
    checkpoint: str = ""
    saved: tuple[int, int] | None = None
    history: list[HistoryPoint] = field(default_factory=list)
    answers: StageAnswers[Any] = field(default_factory=StageAnswers)
    export: ExportRecord | None = None
    teacher_pass: PassManifest | None = None
    unreadable: str | None = None
    missing: list[str] = field(default_factory=list)

    @property
    def rows_sha256(self) -> str | None:
        """Identifies the validation rows; models are compared only on the same ones."""
        return self.manifest.data["validation"].sha256 if self.manifest else None


def wanted_of(manifests: Sequence[Manifest]) -> list[WantedStage]:
    """The stages of a chain about which only the store knows something."""
    return [WantedStage(manifest.stage, manifest.digest) for manifest in manifests]


def load_stages(store: ListableStore, wanted: Sequence[WantedStage]) -> list[LoadedStage]:
    """Every wanted stage, in order. Raises: StoreError if the store itself fails."""
    return [_load_stage(store, stage) for stage in wanted]


def _load_stage(store: ListableStore, wanted: WantedStage) -> LoadedStage:
    try:
        manifest = read_manifest(store, wanted.digest)
    except (CheckpointCorrupt, OtherRelease) as error:
        # One damaged manifest must not hide the other stages.
        return LoadedStage(wanted, unreadable=str(error), missing=[f"{wanted.name}: {error}"])
    if manifest is None:
        return LoadedStage(wanted, saved=_saved_step(store, wanted.digest))
    files = CommittedFiles(store, manifest)
    # Both are extras: without them the report has gaps, which it names, and the numbers of the manifest stand.
    history = files.lines(HISTORY_FILE, HistoryPoint, lost="no curves") or []
    # By the recipe of this stage, not of the chain: its predictions have the labels that it was trained with.
    answers = section_of(manifest.recipe.get("task", {})).load(files)
    return LoadedStage(
        wanted,
        manifest,
        checkpoint=manifest.checkpoint,
        history=history,
        answers=answers,
        export=export_of(store, files),
        teacher_pass=_teacher_pass(store, files),
        missing=[f"{wanted.name}: {sentence}" for sentence in files.missing],
    )


def export_of(store: ListableStore, files: CommittedFiles) -> ExportRecord | None:
    """The export of the committed weights with the most formats."""
    for name in ("onnx-int8", "onnx"):
        try:
            record = read_export(store, files.manifest, name)
        except CheckpointCorrupt as error:
            files.give_up(str(error), "no export")
            continue
        if record is not None:
            return record
    return None


def _teacher_pass(store: ListableStore, files: CommittedFiles) -> PassManifest | None:
    """The pass that a stage has used, for its time."""
    digest = files.manifest.run.teacher_pass
    if digest is None:
        return None
    lost = "no time of its teacher pass"
    try:
        found = read_pass(store, digest)
    except CheckpointCorrupt as error:
        files.give_up(str(error), lost)
        return None
    if found is None:
        files.give_up(f"{store.uri}/{pass_manifest_key(digest)} is missing", lost)
    return found


def _saved_step(store: ListableStore, digest: str) -> tuple[int, int] | None:
    """The latest saved state: its step, and the total number of steps. Unreadable states are ignored."""
    found = []
    for item in store.list_objects(resume_prefix(digest)):
        if item.key.endswith("/index.json"):
            # Damaged, or of another release: the step is only a hint for the reader.
            with contextlib.suppress(ValueError, KeyError, TypeError):
                index = json.loads(store.read(item.key))
                found.append((int(index["step"]), int(index["of"])))
    # Whether training resumes from this state also depends on data, teacher and start, so only the step is reported.
    return max(found, default=None)
