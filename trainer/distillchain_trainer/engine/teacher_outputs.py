"""What the teacher answers for every training row: computed once for all epochs and kept in the store.

One folder per teacher and way to read texts. In it, outputs are keyed by the row's text, so rows may be moved,
repeated, left out or added. They are written in parts, each named by its own sha256: an altered part is detected,
discarded and computed again, and an interrupted pass goes on from the parts that it wrote.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from torch import Tensor

from distillchain_api.digests import sha256_of
from distillchain_api.layout import logits_prefix
from distillchain_api.resource.spec import Training
from distillchain_api.task import Task
from distillchain_store.errors import ObjectMissing
from distillchain_store.store import Store, discard
from distillchain_trainer.engine.encoding import Encoded
from distillchain_trainer.engine.precision import autocast, device_of
from distillchain_trainer.engine.shared_forward import forward_in_rounds
from distillchain_trainer.engine.world import ALONE, World
from distillchain_trainer.errors import StopRequested

log = logging.getLogger(__name__)

# Part of the digest. Raise it when the parts or the computation change, so that older parts are not found.
OUTPUTS_VERSION = 3


@dataclass(frozen=True)
class TeacherOutputs:
    """The teacher's outputs, one for each distinct text.

    Attributes:
        values: [distinct texts, ...] in the teacher's own order.
        place: for each row the index of its text in `values` [rows].
        columns: the teacher's columns in the order of the task; None: they are in order.
        reused: nothing had to be computed.
        elapsed_s: seconds that the teacher took.
    """

    values: NDArray[np.float32]
    place: NDArray[np.int64]
    columns: tuple[int, ...] | None
    reused: bool
    elapsed_s: float


def outputs_digest(teacher_digest: str, task: Task, training: Training) -> str:
    """What decides the teacher's output for a text: its files, and how the text is read and computed.

    Not the set of texts: a subset or superset of the rows finds what was computed before.
    """
    return sha256_of(
        {
            "version": OUTPUTS_VERSION,
            "teacher": teacher_digest,
            "task": task.type,
            "maxLength": task.max_length,
            "precision": training.precision,
            "tf32": training.tf32,
        }
    )


@dataclass
class TeacherPass:
    """One pass of a teacher over the rows of a split.

    Attributes:
        digest: from `outputs_digest`.
        check: raises for outputs that are no numbers.
        folder: for parts in the making.
        stop: whether to write what is computed and stop.
        world: the ranks that share the rows. Rank 0 reads and writes the store; all get the outputs.
    """

    store: Store
    digest: str
    model: Any
    outputs_of: Callable[[Any], Tensor]
    encoded: Encoded
    keys: Sequence[bytes]
    training: Training
    columns: tuple[int, ...] | None
    check: Callable[[NDArray[np.float32]], None]
    folder: Path
    save_interval_s: float
    stop: Callable[[], bool]
    on_batch: Callable[[int, int], None]
    world: World = ALONE

    def run(self) -> TeacherOutputs:
        """Outputs of every row, from the store where it has them.

        Raises: StopRequested, once what is computed is in the store; whatever `check` raises, and then nothing of that
            batch is kept.
        """
        started = time.perf_counter()
        first_row: dict[bytes, int] = {}
        for row, key in enumerate(self.keys):
            first_row.setdefault(key, row)  # equal texts are computed once
        index = {key: position for position, key in enumerate(first_row)}
        # An index per row and not a copy of the outputs, so that equal texts share theirs.
        place = np.fromiter((index[key] for key in self.keys), dtype=np.int64, count=len(self.keys))
        values, known = self._known(index)
        missing = [row for key, row in first_row.items() if not known[index[key]]]
        elapsed_s = 0.0
        if missing:
            values, elapsed_s = self._compute(missing, values, place)
        log.info(
            "teacher logits computed" if missing else "teacher logits reused from the store",
            extra={
                "logits": f"{self.store.uri}/{logits_prefix(self.digest)}",
                "rows": len(first_row),
                "computed": len(missing),
                "elapsed_s": round(time.perf_counter() - started, 2),
            },
        )
        assert values is not None, "a split without rows is refused when it is read"
        return TeacherOutputs(values, place, self.columns, reused=not missing, elapsed_s=elapsed_s)

    def _compute(
        self, rows: list[int], values: NDArray[np.float32] | None, place: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], float]:
        """Fills `values` for these rows and writes them to the store, some from time to time."""
        elapsed_s, done, since = 0.0, 0, time.monotonic()
        unwritten: list[int] = []
        # Around all batches, so that autocast converts the weights once and not for each.
        with autocast(device_of(self.model), self.training.precision):
            for part in forward_in_rounds(
                self.world,
                self.model,
                self.encoded,
                self.outputs_of,
                rows=rows,
                precision=self.training.precision,
                # Before anything is stored, or the next attempt would reuse the NaN.
                check=self.check,
                stop=self.stop,
            ):
                if values is None:
                    values = np.zeros((int(place.max()) + 1, *part.outputs.shape[1:]), dtype=np.float32)
                values[place[part.rows]] = part.outputs
                unwritten += part.rows.tolist()
                elapsed_s += part.device_s / self.world.size
                done += len(part.rows)
                self.on_batch(done, len(rows))
                stop, due = self.world.any(self.stop(), time.monotonic() - since > self.save_interval_s)
                # A stop writes first: the next attempt then computes only the rest.
                if stop or due:
                    self._write(unwritten, values, place)
                    unwritten, since = [], time.monotonic()
                if stop:
                    raise StopRequested
        assert values is not None
        if unwritten:
            self._write(unwritten, values, place)
        return values, elapsed_s

    def _write(self, rows: list[int], values: NDArray[np.float32], place: NDArray[np.int64]) -> None:
        if not self.world.is_main:
            return
        # [rows, 32] bytes: a key is a sha256.
        keys = np.frombuffer(b"".join(self.keys[row] for row in rows), dtype=np.uint8).reshape(len(rows), -1)
        content = safetensors.numpy.save({"keys": keys.copy(), "logits": values[place[rows]]})
        name = hashlib.sha256(content).hexdigest()
        # Named by its content: two pods that compute the same rows write the same object.
        path = self.folder / f"{name}.safetensors"
        path.write_bytes(content)
        self.store.upload(f"{logits_prefix(self.digest)}{name}.safetensors", path)
        path.unlink()

    def _known(self, index: dict[bytes, int]) -> tuple[NDArray[np.float32] | None, NDArray[np.bool_]]:
        """As `_stored`, which rank 0 calls for all ranks."""
        values, known = self._stored(index) if self.world.is_main else (None, np.zeros(len(index), dtype=bool))
        if self.world.is_alone:
            return values, known
        self.world.meet("reading of teacher logits")
        positions = np.flatnonzero(known)
        outputs = np.zeros(0, dtype=np.float32) if values is None else values[positions]
        positions, outputs = self.world.gather(positions)[0], self.world.gather(outputs)[0]
        if not self.world.is_main and len(positions):
            values = np.zeros((len(index), *outputs.shape[1:]), dtype=np.float32)
            values[positions] = outputs
            known[positions] = True
        return values, known

    def _stored(self, index: dict[bytes, int]) -> tuple[NDArray[np.float32] | None, NDArray[np.bool_]]:
        """What the store has: values by position in `index`, and which positions are known."""
        values: NDArray[np.float32] | None = None
        known = np.zeros(len(index), dtype=bool)
        # One part after the other: all of them beside `values` would hold the outputs twice.
        for item in self.store.list_objects(logits_prefix(self.digest)):
            if self.stop():
                raise StopRequested
            part = self._read(item.key)
            if part is None:
                continue
            keys, outputs = part
            if values is None:
                values = np.zeros((len(index), *outputs.shape[1:]), dtype=np.float32)
            if outputs.shape[1:] != values.shape[1:]:
                continue
            # Parts may hold texts of another data set that the same teacher has read.
            found = [(position, row) for row, key in enumerate(keys) if (position := index.get(bytes(key))) is not None]
            if found:
                positions, rows = (list(column) for column in zip(*found, strict=True))
                values[positions] = outputs[rows]
                known[positions] = True
        return values, known

    def _read(self, key: str) -> tuple[NDArray[np.uint8], NDArray[np.float32]] | None:
        """Keys and outputs of one part; None: it is gone, or it was altered and is deleted."""
        path = self.folder / "logits.part"
        try:
            fetched = self.store.download(key, path)
        except ObjectMissing:
            return None  # another pod found it altered
        # Checked before it is parsed: an altered file could make the parser fail instead.
        part = safetensors.numpy.load_file(path) if fetched.sha256 == Path(key).stem else None
        path.unlink()
        if part is None or not np.isfinite(part["logits"]).all():
            log.warning("altered teacher logits are computed again", extra={"object": f"{self.store.uri}/{key}"})
            # Or every later run would download and reject it again.
            discard(self.store, key, [key])
            return None
        return part["keys"], part["logits"]
