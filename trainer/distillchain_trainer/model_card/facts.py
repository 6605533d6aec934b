"""What a model card is made from: manifests of the stage and of those before it, and intervals of the metrics."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from distillchain_api.failures import StageError
from distillchain_api.layout import RESULTS_FOLDER, attempt_prefix
from distillchain_api.wire.manifest import FileEntry, Manifest
from distillchain_report.commits import CommittedFiles, walk_back
from distillchain_report.model import Estimate
from distillchain_report.sections import section_of
from distillchain_store.errors import ObjectMissing
from distillchain_store.store import Store, fingerprint_of

log = logging.getLogger(__name__)

Estimates = dict[str, dict[str, Estimate]]
"""By split, then by metric."""


@dataclass(frozen=True)
class CardFacts:
    """All that a card states.

    Attributes:
        ancestors: the committed stages that lead to this one, the first of the chain first.
        estimates: metrics of the student, with intervals where they can be computed.
        code_file: name of the file in the checkpoint with the code of a model type that transformers does not have.
    """

    manifest: Manifest
    ancestors: list[Manifest] = field(default_factory=list)
    estimates: Estimates = field(default_factory=dict)
    code_file: str | None = None

    @property
    def root_license(self) -> str | None:
        """The license of the root teacher, as far as it is known."""
        first = [*self.ancestors, self.manifest][0]
        return first.licenses.get("teacher" if first.teacher else "start")


def gather_facts(store: Store, manifest: Manifest, attempt: Path, *, code_file: str | None) -> CardFacts:
    """The facts of a student whose results are in the folder `attempt`, not yet uploaded."""
    return CardFacts(manifest, _ancestors(store, manifest), _estimates(manifest, attempt), code_file)


def _ancestors(store: Store, manifest: Manifest) -> list[Manifest]:
    if manifest.teacher is None or manifest.teacher.digest is None:
        return []
    try:
        return walk_back(store, manifest.teacher.digest)
    # An earlier manifest may have been deleted meanwhile. The student is trained, and its card says less.
    except StageError as error:
        log.warning("the model card lacks the earlier stages", extra={"why": str(error)})
        return []


def _estimates(manifest: Manifest, attempt: Path) -> Estimates:
    files = _AttemptFiles(manifest, attempt)
    section = section_of(manifest.recipe.get("task", {}))
    answers = section.load(CommittedFiles(files, files.manifest))
    metrics = manifest.student.metrics
    measured: dict[str, tuple[Mapping[str, float], object]] = {"validation": (metrics.validation, answers.student)}
    if metrics.test:
        measured["test"] = (metrics.test, answers.on_test)
    found: Estimates = {}
    for split, (values, on_split) in measured.items():
        rows = manifest.data[split].rows
        found[split] = {}
        for name, value in values.items():
            low, high = section.interval(name, value, rows=rows, answers=on_split) or (None, None)
            found[split][name] = Estimate(value=value, low=low, high=high)
    return found


class _AttemptFiles:
    """The results of an attempt before its upload, read as if they were in the store.

    Attributes:
        manifest: with these results as its files.
    """

    def __init__(self, manifest: Manifest, attempt: Path) -> None:
        self.uri = f"file://{attempt}"
        self._attempt = attempt
        self._prefix = attempt_prefix(manifest.digest, manifest.attempt) + "/"
        # A file of the checkpoint as well, by which a manifest shows that results are in a folder of their own.
        paths = [*(attempt / RESULTS_FOLDER).iterdir(), attempt / "checkpoint/config.json"]
        prints = {path.relative_to(attempt).as_posix(): fingerprint_of(path) for path in sorted(paths)}
        entries = [
            FileEntry(path=name, size_bytes=found.size_bytes, sha256=found.sha256) for name, found in prints.items()
        ]
        self.manifest = manifest.model_copy(update={"files": entries})

    def read(self, key: str) -> bytes:
        """See ReadableStore."""
        try:
            return (self._attempt / key.removeprefix(self._prefix)).read_bytes()
        except FileNotFoundError as error:
            raise ObjectMissing(f"{self.uri}/{key} is missing") from error
