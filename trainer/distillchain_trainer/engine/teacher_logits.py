"""What the teacher says to every training example: computed once, kept in the store, never per epoch.

One folder for each teacher and set of texts; in it keyed by the example's content, so that rows may be moved or
repeated. Kept in parts, each named by its own sha256: a part that was altered is seen, thrown away and computed again,
and an interrupted run goes on from the parts it wrote.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from distillchain_api.digests import sha256_of
from distillchain_api.resource.spec import Precision
from distillchain_api.task import Task
from distillchain_store.errors import ObjectMissing
from distillchain_store.store import Store, discard
from distillchain_trainer.engine.encode import Encoded, forward
from distillchain_trainer.errors import StopRequested
from distillchain_trainer.models.checkpoints import Checkpoint
from distillchain_trainer.tasks.text_classification.evaluate import check_numbers
from distillchain_trainer.tasks.text_classification.rows import Split

log = logging.getLogger(__name__)

LOGITS_VERSION = 1


@dataclass(frozen=True)
class TeacherLogits:
    """logits [rows, classes] in the teacher's own order of classes."""

    logits: NDArray[np.float32]
    reused: bool
    elapsed_s: float


def logits_digest(teacher_digest: str, task: Task, split: Split, *, precision: Precision) -> str:
    """What decides the teacher's answers: its files, the texts, and how they are read."""
    return sha256_of(
        {
            "version": LOGITS_VERSION,
            "teacher": teacher_digest,
            "maxLength": task.max_length,
            "precision": precision,
            "texts": split.texts_sha256,
        }
    )


def teacher_logits(
    store: Store,
    digest: str,
    model: Any,
    split: Split,
    encoded: Encoded,
    *,
    given: Checkpoint,
    classes: int,
    precision: Precision,
    folder: Path,
    save_interval_s: float,
    stop: Callable[[], bool],
    on_batch: Callable[[int, int], None],
) -> TeacherLogits:
    """Logits of every row, from the store where it has them.

    Args:
        given: the teacher, for the message of CheckpointInvalid.
    Raises: StopRequested, once what is computed is in the store; CheckpointInvalid for a logit that is no number, of
        which nothing is kept.
    """
    started = time.perf_counter()
    known = _read_parts(store, f"logits/{digest}/", classes, folder)
    first_row: dict[bytes, int] = {}
    for row, key in enumerate(split.keys):
        first_row.setdefault(key, row)  # equal texts are computed once
    rows = [row for key, row in first_row.items() if key not in known]
    model_s, done, since = 0.0, 0, time.monotonic()
    fresh: dict[bytes, NDArray[np.float32]] = {}
    for answer in forward(model, encoded, rows=rows, precision=precision) if rows else ():
        check_numbers(answer.logits, split.name, given=given)
        fresh.update(zip((split.keys[row] for row in answer.rows), answer.logits, strict=True))
        model_s += answer.elapsed_s
        done += len(answer.rows)
        on_batch(done, len(rows))
        if stop() or time.monotonic() - since > save_interval_s:
            _write_part(store, digest, fresh, folder)
            known |= fresh
            fresh, since = {}, time.monotonic()
            if stop():
                raise StopRequested
    if fresh:
        _write_part(store, digest, fresh, folder)
        known |= fresh
    event = "teacher logits computed" if rows else "teacher logits reused from the store"
    log.info(
        event,
        extra={
            "logits": f"{store.uri}/logits/{digest}",
            "rows": len(first_row),
            "computed": len(rows),
            "elapsed_s": round(time.perf_counter() - started, 2),
        },
    )
    logits = np.stack([known[key] for key in split.keys]).astype(np.float32)
    return TeacherLogits(logits, reused=not rows, elapsed_s=model_s)


def _write_part(store: Store, digest: str, fresh: dict[bytes, NDArray[np.float32]], folder: Path) -> None:
    if not fresh:
        return
    keys = np.frombuffer(b"".join(fresh), dtype=np.uint8).reshape(len(fresh), -1)
    content = safetensors.numpy.save({"keys": keys.copy(), "logits": np.stack(list(fresh.values()))})
    name = hashlib.sha256(content).hexdigest()
    path = folder / f"{name}.safetensors"
    path.write_bytes(content)
    store.upload(f"logits/{digest}/{name}.safetensors", path)
    path.unlink()


def _read_parts(store: Store, prefix: str, classes: int, folder: Path) -> dict[bytes, NDArray[np.float32]]:
    known: dict[bytes, NDArray[np.float32]] = {}
    for item in store.list_objects(prefix):
        path = folder / "logits.part"
        try:
            came = store.download(item.key, path)
        except ObjectMissing:
            continue  # another pod found it broken
        part = safetensors.numpy.load_file(path) if came.sha256 == Path(item.key).stem else None
        path.unlink()
        if part is None or not np.isfinite(part["logits"]).all():
            log.warning(
                "teacher logits are altered or no numbers; they are computed again",
                extra={"object": f"{store.uri}/{item.key}"},
            )
            discard(store, item.key)
        elif part["logits"].shape[1] == classes:
            known.update(zip((bytes(key) for key in part["keys"]), part["logits"], strict=True))
    return known
