"""Committed stages in a store: a chain of manifests, and the files of one commit. Knows no task type."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from distillchain_api.base import Document
from distillchain_api.digests import sha256_of
from distillchain_api.faults import BadDocument
from distillchain_api.layout import attempt_prefix, manifest_key
from distillchain_api.wire.export import ExportRecord
from distillchain_api.wire.manifest import Manifest
from distillchain_api.wire.pass_manifest import PassManifest
from distillchain_api.wire.records import PREDICTIONS_FILE, TEACHER_PREDICTIONS_FILE, lines_of
from distillchain_store.commit import read_manifest
from distillchain_store.errors import CheckpointCorrupt, ObjectMissing, OtherRelease
from distillchain_store.store import ReadableStore
from distillchain_store.verified import read_file

LineT = TypeVar("LineT", bound=Document)


def walk_back(store: ReadableStore, digest: str) -> list[Manifest]:
    """The committed stages from the first one to `digest`, found through each stage's teacher.

    Raises: CheckpointCorrupt when one of them is missing or damaged, or when they form a circle; OtherRelease.
    """
    found: list[Manifest] = []
    current: str | None = digest
    while current is not None:
        manifest = read_manifest(store, current)
        # A teacher was committed before its student, so its manifest was deleted later.
        if manifest is None:
            raise CheckpointCorrupt(f"{store.uri}/{manifest_key(current)} is missing")
        # A store can be written by others, and a circle would never end.
        if any(other.digest == manifest.digest for other in found):
            raise CheckpointCorrupt(f"{store.uri}/{manifest_key(current)} names itself as its teacher's teacher")
        found.append(manifest)
        current = manifest.teacher.digest if manifest.teacher else None
    return found[::-1]


def sources_digest(manifests: Sequence[Manifest], exports: Sequence[ExportRecord]) -> str:
    """Identifies what a report was made from: sha256 over the manifests of its stages and the records of exports.

    Without the place of the checkpoint, which `read_manifest` sets to where the store is now.
    """
    stages = [manifest.to_document() | {"checkpoint": ""} for manifest in manifests]
    return sha256_of([*stages, *(record.to_document() for record in exports)])


def gpu_hours(manifest: Manifest | PassManifest) -> float:
    """What a committed stage or pass took of a GPU; 0 on a CPU."""
    # A manifest without a device counts as CPU: better no GPU-hours than invented ones.
    on_gpu = not manifest.environment.get("device", "cpu").startswith("cpu")
    run = manifest.run if isinstance(manifest, Manifest) else manifest
    return run.elapsed_s / 3600 * run.processes if on_gpu else 0.0


def root_predictions(store: ReadableStore, digest: str, *, validation_sha256: str) -> tuple[CommittedFiles, str] | None:
    """The files that have the root teacher's predictions on validation, and the name of the file with them.

    Args:
        digest: of any committed stage of the chain.
        validation_sha256: of the rows to compare on; predictions for other rows are of no use.
    Returns: None if the store lacks them.
    """
    try:
        first = walk_back(store, digest)[0]
    # Of use only to choose example rows, so a damaged earlier stage must not fail the commit of this one.
    except (CheckpointCorrupt, OtherRelease):
        return None
    if first.data["validation"].sha256 != validation_sha256:
        return None
    # A first stage without a teacher is the fine-tuned root teacher itself.
    name = TEACHER_PREDICTIONS_FILE if first.teacher else PREDICTIONS_FILE
    return CommittedFiles(store, first), name


class CommittedFiles:
    """The files of one commit. A file is used only if its content matches the manifest.

    Attributes:
        uri: folder of the attempt, at the place where the store is now.
        missing: one sentence for each file that could not be used.
    """

    def __init__(self, store: ReadableStore, manifest: Manifest) -> None:
        self._store, self.manifest = store, manifest
        self.uri = f"{store.uri}/{attempt_prefix(manifest.digest, manifest.attempt)}"
        self.missing: list[str] = []

    def lines(self, name: str, kind: type[LineT], *, lost: str) -> list[LineT] | None:
        """The lines of a file of distillchain_api.wire.records; None if the file cannot be used.

        Args:
            lost: what the report then lacks, for `missing`; empty: nothing that a reader would look for.
        """
        path = self.manifest.result_path(name)
        try:
            return [kind.parse(line) for line in lines_of(read_file(self._store, self.manifest, path).decode())]
        # Other errors of the store pass: a report with gaps must mean that files are missing, not that the store was
        # away.
        except (ObjectMissing, CheckpointCorrupt) as error:
            self.give_up(str(error), lost)
        except (BadDocument, UnicodeDecodeError) as error:
            self.give_up(f"{self.uri}/{path} cannot be read ({str(error).splitlines()[0]})", lost)
        return None

    def give_up(self, why: str, lost: str) -> None:
        """Records that a file cannot be used."""
        if lost:
            self.missing.append(f"{lost}: {why}")
