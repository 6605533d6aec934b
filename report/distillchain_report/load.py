"""What the store knows of a chain. Every file is held against its manifest; what is missing or altered is said, not
guessed, and the rest is still read."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from distillchain_api.base import Document
from distillchain_api.digests import sha256_of
from distillchain_api.failures import FailureClass
from distillchain_api.faults import BadDocument
from distillchain_api.layout import manifest_key
from distillchain_api.resource.status import StagePhase
from distillchain_api.wire.manifest import Manifest, OtherContract, parse_manifest
from distillchain_api.wire.records import (
    EXAMPLES_FILE,
    HISTORY_FILE,
    PREDICTIONS_FILE,
    TEACHER_PREDICTIONS_FILE,
    TEST_PREDICTIONS_FILE,
    Example,
    HistoryPoint,
    Prediction,
    lines_of,
)

LineT = TypeVar("LineT", bound=Document)


class Listed(Protocol):
    """An object in a listing."""

    @property
    def key(self) -> str:
        """Relative to the store."""


class ReadableStore(Protocol):
    """As much of a store as a report needs; the trainer's `Store` is one."""

    @property
    def uri(self) -> str:
        """Where it is."""

    def read(self, key: str) -> bytes:
        """The content of an object that was listed."""

    def list_objects(self, prefix: str) -> Sequence[Listed]:
        """All objects whose key starts with `prefix`."""


@dataclass(frozen=True)
class WantedStage:
    """A stage of the chain as its plan and, where there is one, its status on the cluster know it.

    Attributes:
        phase: None: there is no status; the store alone tells. Failed, of a committed stage too: its commit is damaged,
            or misses its gate as it stands now.
        reused: found committed when the chain ran; None: not known.
    """

    name: str
    digest: str
    phase: StagePhase | None = None
    message: str | None = None
    failure_class: FailureClass | None = None
    reused: bool | None = None


@dataclass(frozen=True)
class Predictions:
    """A model on the validation rows.

    Attributes:
        truth, predicted: class indices [rows].
        logits: [rows, classes], in the order of the task.
        rows_sha256: of the rows, texts and labels; predictions are compared on the same rows alone.
    """

    truth: NDArray[np.int64]
    predicted: NDArray[np.int64]
    logits: NDArray[np.float32]
    rows_sha256: str


@dataclass(frozen=True)
class LoadedStage:
    """A stage, and all of it that could be read.

    Attributes:
        manifest: None: not committed.
        checkpoint: where it lies now; a store may have been copied, moved or mounted elsewhere since the commit.
        saved: the latest step of which a state is saved, and the last step of all; of a stage that is not committed.
        on_test: of the student; where macro F1 is the metric, whose interval needs them.
        texts: of a few validation rows, by row.
        missing: a sentence for each thing that a report would have shown.
    """

    wanted: WantedStage
    manifest: Manifest | None = None
    checkpoint: str = ""
    saved: tuple[int, int] | None = None
    history: list[HistoryPoint] = field(default_factory=list)
    student: Predictions | None = None
    on_test: Predictions | None = None
    teacher: Predictions | None = None
    texts: dict[int, list[str]] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)


class Unreadable(Exception):
    """An object of the store is not what it should be."""


def read_manifest(store: ReadableStore, digest: str) -> Manifest | None:
    """The commit of a stage, None when it is not committed. Raises: Unreadable."""
    key = manifest_key(digest)
    if key not in _keys(store, key):
        return None
    try:
        manifest = parse_manifest(store.read(key))
    except OtherContract as error:
        raise Unreadable(
            f"{store.uri}/{key} was made by another release ({error}); make the report with that release"
        ) from error
    except (BadDocument, UnicodeDecodeError) as error:
        raise Unreadable(f"{store.uri}/{key} cannot be read ({str(error).splitlines()[0]})") from error
    if manifest.digest != digest:
        raise Unreadable(f"{store.uri}/{key} is the manifest of another stage")
    return manifest


def walk_back(store: ReadableStore, digest: str) -> list[Manifest]:
    """The committed stages from the root to the one of `digest`, by each one's teacher.

    Raises: Unreadable when one of them is not there, or a damaged one goes in circles.
    """
    found: list[Manifest] = []
    wanted: str | None = digest
    while wanted is not None:
        manifest = read_manifest(store, wanted)
        if manifest is None:
            raise Unreadable(f"{store.uri}/{manifest_key(wanted)} is missing")
        if any(other.digest == manifest.digest for other in found):
            raise Unreadable(f"{store.uri}/{manifest_key(wanted)} names itself as its teacher's teacher")
        found.append(manifest)
        wanted = manifest.teacher.digest if manifest.teacher else None
    return found[::-1]


def wanted_of(manifests: Sequence[Manifest]) -> list[WantedStage]:
    """The stages of a chain of which nothing but the store is known."""
    return [WantedStage(manifest.stage, manifest.digest) for manifest in manifests]


def manifests_digest(manifests: Sequence[Manifest]) -> str:
    """Names the commits that a report was made of: sha256 over their manifests."""
    return sha256_of([manifest.to_document() for manifest in manifests])


def load_stages(store: ReadableStore, wanted: Sequence[WantedStage]) -> list[LoadedStage]:
    """Every wanted stage, in order. Errors of the store itself are the store's own."""
    return [_load_stage(store, stage) for stage in wanted]


def read_root_logits(store: ReadableStore, digest: str, *, validation_sha256: str) -> NDArray[np.float32] | None:
    """Logits of the root teacher of a committed stage on validation; None when the store lacks them.

    Args:
        validation_sha256: of the rows they are to be compared on; those of other rows are none.
    """
    try:
        first = walk_back(store, digest)[0]
    except Unreadable:
        return None
    if first.data["validation"].sha256 != validation_sha256:
        return None
    name = TEACHER_PREDICTIONS_FILE if first.teacher else PREDICTIONS_FILE
    found = _predictions(_Files(store, first), name)
    return found.logits if found else None


def _load_stage(store: ReadableStore, wanted: WantedStage) -> LoadedStage:
    try:
        manifest = read_manifest(store, wanted.digest)
    except Unreadable as error:
        return LoadedStage(wanted, missing=[f"{wanted.name}: {error}"])
    if manifest is None:
        return LoadedStage(wanted, saved=_saved(store, wanted.digest))
    files = _Files(store, manifest)
    examples = files.lines(EXAMPLES_FILE, Example, "") or []
    return LoadedStage(
        wanted,
        manifest,
        checkpoint=files.uri,
        history=files.lines(HISTORY_FILE, HistoryPoint, "no curves") or [],
        student=_predictions(files, PREDICTIONS_FILE, "no interval of its macro F1 and no comparison"),
        on_test=_predictions(files, TEST_PREDICTIONS_FILE, "no interval of its macro F1 on test")
        if manifest.student.metrics.test and manifest.recipe.get("task", {}).get("metric") == "macroF1"
        else None,
        teacher=_teacher_predictions(files),
        texts={example.row: example.text for example in examples},
        missing=[f"{wanted.name}: {sentence}" for sentence in files.missing],
    )


class _Files:
    """The files of one commit; each is read only if it is the one the manifest lists."""

    def __init__(self, store: ReadableStore, manifest: Manifest) -> None:
        self._store, self.manifest = store, manifest
        self._prefix = f"stages/{manifest.digest}/attempts/{manifest.attempt}/"
        self._there = _keys(store, self._prefix)
        self.uri = f"{store.uri}/{self._prefix}".removesuffix("/")
        self.missing: list[str] = []

    def lines(self, name: str, kind: type[LineT], without: str) -> list[LineT] | None:
        """The lines of a file, or None: then `missing` says what a report lacks `without` it (empty: nothing)."""
        try:
            content = self._read(name)
            return [kind.parse(line) for line in lines_of(content.decode())]
        except (Unreadable, BadDocument, UnicodeDecodeError) as error:
            why = str(error).splitlines()[0]
            if without:
                self.missing.append(f"{name} {why if isinstance(error, Unreadable) else 'cannot be read'}; {without}")
            return None

    def _read(self, name: str) -> bytes:
        entry = next((entry for entry in self.manifest.files if entry.path == name), None)
        if entry is None:
            raise Unreadable("was not kept when this stage was committed")
        if self._prefix + name not in self._there:
            raise Unreadable("is gone from the store")
        content = self._store.read(self._prefix + name)
        if hashlib.sha256(content).hexdigest() != entry.sha256:
            raise Unreadable("was altered in the store")
        return content


def _teacher_predictions(files: _Files) -> Predictions | None:
    """Its loss is told only of a root teacher: those of a committed stage are kept with that stage as well."""
    teacher = files.manifest.teacher
    if teacher is None:
        return None
    without = "no paired test against the root teacher" if teacher.digest is None else ""
    return _predictions(files, TEACHER_PREDICTIONS_FILE, without)


def _predictions(files: _Files, name: str, without: str = "") -> Predictions | None:
    lines = files.lines(name, Prediction, without)
    if not lines:
        return None
    labels = files.manifest.recipe.get("task", {}).get("labels", [])
    index = {label: place for place, label in enumerate(labels)}
    if any(len(line.logits) != len(labels) or {line.label, line.predicted} - index.keys() for line in lines):
        files.missing.append(f"{name} has other labels than the task{without and f'; {without}'}")
        return None
    return Predictions(
        truth=np.array([index[line.label] for line in lines], dtype=np.int64),
        predicted=np.array([index[line.predicted] for line in lines], dtype=np.int64),
        logits=np.array([line.logits for line in lines], dtype=np.float32),
        rows_sha256=files.manifest.data["validation"].sha256,
    )


def _saved(store: ReadableStore, digest: str) -> tuple[int, int] | None:
    """Where the resumable state of the latest step stands; one that cannot be read is passed over."""
    found = []
    for key in _keys(store, f"stages/{digest}/resume/"):
        if key.endswith("/index.json"):
            with contextlib.suppress(ValueError, KeyError, TypeError):
                index = json.loads(store.read(key))
                found.append((int(index["step"]), int(index["of"])))
    return max(found, default=None)


def _keys(store: ReadableStore, prefix: str) -> set[str]:
    return {item.key for item in store.list_objects(prefix)}
