"""Resumable training states in the store: files first, a small index with their sha256 last.

A state without an index, or with files that differ from it, is incomplete and skipped. Each attempt has states of its
own, so two pods that train the same stage cannot mix theirs. So has each source: a digest holds URIs, and their content
may have changed. The newest two states of a source are kept.
"""

from __future__ import annotations

import logging
import uuid
from pathlib import Path

from pydantic import Field

from distillchain_api.base import Record
from distillchain_api.faults import BadDocument
from distillchain_api.layout import resume_prefix
from distillchain_api.wire.manifest import FileEntry, SelectedEpoch
from distillchain_api.wire.work_order import Digest
from distillchain_store.errors import ObjectMissing
from distillchain_store.store import Store, discard
from distillchain_trainer.errors import TrainerError

log = logging.getLogger(__name__)

# The newest may be incomplete or damaged; then the one before it is used.
KEPT = 2
INDEX = "index.json"
# 64 bits in hex: enough to tell a few sources of one stage apart, and short in a key.
SOURCE_CHARS = 16


class ResumeIndex(Record):
    """Describes a state: where training stood, and its files."""

    step: int
    of: int
    elapsed_s: float
    """Wall seconds of the stage so far, over all attempts."""
    model_s: float
    train_s: float
    """Seconds of training alone."""
    final_loss: float
    # A state of an older release may lack these fields.
    logits_reused: bool = False
    logits: list[Digest] | None = None
    micro_batch_size: int = 0
    mode: str = "eager"
    warnings: list[str] = Field(default_factory=list)
    is_complete: bool | None = None
    """Whether training is complete; None in a state of an older release."""
    selected: SelectedEpoch | None = None
    """The epoch whose weights these are, once the training is complete."""
    files: list[FileEntry] = Field(default_factory=list)

    @property
    def finished(self) -> bool:
        """Whether training is complete."""
        # Not by the step alone: with `selection: Best`, the last epoch is measured after its last step.
        return self.step >= self.of if self.is_complete is None else self.is_complete


class ResumeStates:
    """The states of one stage.

    Args:
        source: sha256 over training rows, teacher and start of the student; states of another source are not found.
    """

    def __init__(self, store: Store, digest: str, attempt: str, *, source: str) -> None:
        self._store = store
        self._stage = resume_prefix(digest)
        self._prefix = f"{self._stage}{source[:SOURCE_CHARS]}-"
        self._attempt = attempt
        self._unusable: set[str] = set()  # skipped states: they must not push out newer ones

    @property
    def uri(self) -> str:
        """Where the states are."""
        return f"{self._store.uri}/{self._stage.rstrip('/')}"

    def save(self, folder: Path, index: ResumeIndex) -> None:
        """Stores all files of `folder` as the state at `index.step`, then deletes older states."""
        # Padded with zeros, so that states sort by step; random, because an earlier try may have left some files.
        state = f"{self._prefix}{index.step:09d}-{self._attempt}-{uuid.uuid4().hex[:6]}/"
        files = []
        for path in sorted(item for item in folder.rglob("*") if item.is_file()):
            name = path.relative_to(folder).as_posix()
            stored = self._store.upload(state + name, path)
            files.append(FileEntry(path=name, size_bytes=stored.size_bytes, sha256=stored.sha256))
        whole = index.model_copy(update={"files": files})
        # Last, because the index makes the state count: a pod may be killed between two uploads.
        self._store.write(state + INDEX, whole.to_json().encode())
        log.info("state saved", extra={"step": index.step, "of": index.of, "state": f"{self._store.uri}/{state}"})
        # Only now, so that there is always a complete state.
        self._drop_older()

    def load_newest(self, folder: Path) -> tuple[ResumeIndex, Path] | None:
        """Downloads the newest complete state below `folder`. Returns: its index and folder, or None."""
        for state in reversed(self._states()):
            place = folder / Path(state).name
            index = self._load(state, place)
            if index is not None:
                where = f"{self._store.uri}/{state}"
                log.info("state found", extra={"step": index.step, "of": index.of, "state": where})
                return index, place
        # States of another source as well: without this line a user would not learn why training starts again.
        if self._store.list_objects(self._stage):
            log.warning(
                "no saved state can be used: none is complete, or data, teacher or student have changed; training "
                "starts from the beginning",
                extra={"states": self.uri},
            )
        return None

    def load_named(self, name: str, folder: Path) -> tuple[ResumeIndex, Path]:
        """Downloads the state that `load_newest` found on another node, by the name of its folder."""
        state = f"{self._stage}{name}/"
        index = self._load(state, folder / name)
        if index is None:
            raise TrainerError(
                f"{self._store.uri}/{state} was found by another process of this stage and is gone; try again"
            )
        return index, folder / name

    def _states(self) -> list[str]:
        """Prefixes of the states that have an index, lowest step first."""
        keys = [item.key for item in self._store.list_objects(self._prefix)]
        return sorted(key.removesuffix(INDEX) for key in keys if key.endswith("/" + INDEX))

    def _load(self, state: str, folder: Path) -> ResumeIndex | None:
        try:
            index = ResumeIndex.parse(self._store.read(state + INDEX))
            for entry in index.files:
                fetched = self._store.download(state + entry.path, folder / entry.path)
                if (fetched.size_bytes, fetched.sha256) != (entry.size_bytes, entry.sha256):
                    raise ObjectMissing(f"{state}{entry.path} was altered")
        except (ObjectMissing, BadDocument) as error:
            # Perhaps another pod deletes it at this moment: each keeps only the newest states, whoever wrote them.
            log.warning(
                "an incomplete state is skipped; an older one is used", extra={"state": state, "why": str(error)}
            )
            self._unusable.add(state)
            return None
        return index

    def _drop_older(self) -> None:
        kept = [state for state in self._states() if state not in self._unusable][-KEPT:]
        if kept:
            # Nothing newer than the kept ones: a state without an index may be one that another pod is writing now.
            older = [
                item.key
                for item in self._store.list_objects(self._prefix)
                if _state_of(item.key) not in kept and _state_of(item.key) < kept[0]
            ]
            discard(self._store, self._stage, older)


def clear_states(store: Store, digest: str) -> list[str]:
    """Deletes all states of a stage, after its commit. Returns: a warning if they stay behind."""
    kept_behind = discard(store, resume_prefix(digest))
    return [kept_behind] if kept_behind else []


def _state_of(key: str) -> str:
    """The prefix of the state that an object belongs to."""
    head, _, rest = key.partition("/resume/")
    return f"{head}/resume/{rest.partition('/')[0]}/"
