"""What the teacher answers for every training row: computed once for all epochs and kept in the store.

One folder per teacher and way to read texts. In it, outputs are keyed by the row's text, so rows may be moved,
repeated, left out or added. They are written in parts, each named by its own sha256: an altered part is detected,
discarded and computed again, and an interrupted pass goes on from the parts that it wrote.
"""

from __future__ import annotations

import functools
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

from distillchain_api.digests import sha256_of
from distillchain_api.layout import logits_prefix
from distillchain_api.resource.spec import Training
from distillchain_api.task import Task
from distillchain_store.errors import ObjectMissing
from distillchain_store.store import Store, discard
from distillchain_trainer.engine.distinct_texts import DistinctTexts, Keys
from distillchain_trainer.engine.encoded import Encoded, ranges
from distillchain_trainer.engine.forward import OutputsOf
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
        values: [distinct texts, ...] in the teacher's own order of columns. For a task with items they are [items of
            the distinct texts, ...], and zero for items that the teacher's tokenizer cut off.
        place: for each row the index of its text in `values`, or in `starts` [rows].
        columns: the teacher's columns in the order of the task; None: they are in order.
        reused: nothing had to be computed.
        elapsed_s: seconds that the teacher took.
        starts: where the items of each distinct text start in `values`, [distinct texts + 1]; None: there are no items.
        answered: for each item of the rows whether the teacher has an answer, [items]; None: for all of them.
    """

    values: NDArray[np.float32]
    place: NDArray[np.int64]
    columns: tuple[int, ...] | None
    reused: bool
    elapsed_s: float
    starts: NDArray[np.int64] | None = None
    answered: NDArray[np.bool_] | None = None


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
            **{name: getattr(task, name) for name in task.output_fields},
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
    outputs_of: OutputsOf
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
        texts = DistinctTexts.of(self._keys, self.encoded.item_counts)
        values, known = self._known(texts)
        # In the order of the rows, which decides how they are batched.
        missing = np.sort(texts.first_rows[~known])
        elapsed_s = 0.0
        if len(missing):
            values, elapsed_s = self._compute(missing.tolist(), values, texts)
        log.info(
            "teacher logits computed" if len(missing) else "teacher logits reused from the store",
            extra={
                "logits": f"{self.store.uri}/{logits_prefix(self.digest)}",
                "rows": len(texts),
                "computed": len(missing),
                "elapsed_s": round(time.perf_counter() - started, 2),
            },
        )
        assert values is not None, "a split without rows is refused when it is read"
        return TeacherOutputs(
            values,
            texts.place,
            self.columns,
            reused=not len(missing),
            elapsed_s=elapsed_s,
            starts=texts.starts,
            answered=self.encoded.answered,
        )

    @functools.cached_property
    def _keys(self) -> Keys:
        return np.frombuffer(b"".join(self.keys), dtype=np.uint8).reshape(len(self.keys), -1)

    def _compute(
        self, rows: list[int], values: NDArray[np.float32] | None, texts: DistinctTexts
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
                    values = np.zeros((texts.output_count, *part.outputs.shape[1:]), dtype=np.float32)
                values[self._places(part.rows, texts)] = part.outputs
                unwritten += part.rows.tolist()
                elapsed_s += part.device_s / self.world.size
                done += len(part.rows)
                self.on_batch(done, len(rows))
                stop, due = self.world.any(self.stop(), time.monotonic() - since > self.save_interval_s)
                # A stop writes first: the next attempt then computes only the rest.
                if stop or due:
                    self._write(unwritten, values, texts)
                    unwritten, since = [], time.monotonic()
                if stop:
                    raise StopRequested
        assert values is not None
        if unwritten:
            self._write(unwritten, values, texts)
        return values, elapsed_s

    def _places(self, rows: NDArray[np.int64], texts: DistinctTexts) -> NDArray[np.int64]:
        """Where the outputs of some rows, without padding, belong in the values of all texts."""
        if texts.starts is None or self.encoded.item_starts is None or self.encoded.weights is None:
            return texts.place[rows]
        # The items of a text are numbered as those of its row, from another start.
        shift = texts.starts[texts.place[rows]] - self.encoded.item_starts.numpy()[rows]
        places: NDArray[np.int64] = self.encoded.output_places(rows) + np.repeat(shift, self.encoded.weights[rows])
        return places

    def _write(self, rows: list[int], values: NDArray[np.float32], texts: DistinctTexts) -> None:
        if not self.world.is_main:
            return
        numbers = texts.place[rows]
        part: dict[str, NDArray[Any]] = {"keys": self._keys[rows], "logits": values[texts.outputs(numbers)]}
        if texts.starts is not None:
            part["starts"] = np.concatenate([[0], np.cumsum(texts.sizes(numbers))])
        content = safetensors.numpy.save(part)
        name = hashlib.sha256(content).hexdigest()
        # Named by its content: two pods that compute the same rows write the same object.
        path = self.folder / f"{name}.safetensors"
        path.write_bytes(content)
        self.store.upload(f"{logits_prefix(self.digest)}{name}.safetensors", path)
        path.unlink()

    def _known(self, texts: DistinctTexts) -> tuple[NDArray[np.float32] | None, NDArray[np.bool_]]:
        """As `_stored`, which rank 0 calls for all ranks."""
        values, known = self._stored(texts) if self.world.is_main else (None, np.zeros(len(texts), dtype=bool))
        if self.world.is_alone:
            return values, known
        self.world.meet("reading of teacher logits")
        numbers = np.flatnonzero(known)
        outputs = np.zeros(0, dtype=np.float32) if values is None else values[texts.outputs(numbers)]
        numbers, outputs = self.world.gather(numbers)[0], self.world.gather(outputs)[0]
        if not self.world.is_main and len(numbers):
            values = np.zeros((texts.output_count, *outputs.shape[1:]), dtype=np.float32)
            values[texts.outputs(numbers)] = outputs
            known[numbers] = True
        return values, known

    def _stored(self, texts: DistinctTexts) -> tuple[NDArray[np.float32] | None, NDArray[np.bool_]]:
        """What the store has: values in the order of `texts`, and which texts are known."""
        values: NDArray[np.float32] | None = None
        known = np.zeros(len(texts), dtype=bool)
        # One part after the other: all of them beside `values` would hold the outputs twice.
        for item in self.store.list_objects(logits_prefix(self.digest)):
            if self.stop():
                raise StopRequested
            part = self._read(item.key)
            if part is None:
                continue
            if values is None:
                values = np.zeros((texts.output_count, *part.logits.shape[1:]), dtype=np.float32)
            if part.logits.shape[1:] == values.shape[1:]:
                known[part.copy_into(values, texts)] = True
        return values, known

    def _read(self, key: str) -> Part | None:
        """One part; None: it is gone, or it was altered and is deleted."""
        path = self.folder / "logits.part"
        try:
            fetched = self.store.download(key, path)
        except ObjectMissing:
            return None  # another pod found it altered
        # Checked before it is parsed: an altered file could make the parser fail instead.
        found = safetensors.numpy.load_file(path) if fetched.sha256 == Path(key).stem else None
        path.unlink()
        if found is None or not np.isfinite(found["logits"]).all():
            log.warning("altered teacher logits are computed again", extra={"object": f"{self.store.uri}/{key}"})
            # Or every later run would download and reject it again.
            discard(self.store, key, [key])
            return None
        return Part(found["keys"], found["logits"], found.get("starts"))


@dataclass(frozen=True)
class Part:
    """Outputs of some texts as they lie in the store.

    Attributes:
        logits: [texts, ...], or [items of the texts, ...].
        starts: where the items of each text start in `logits`, [texts + 1]; None: one output per text.
    """

    keys: Keys
    logits: NDArray[np.float32]
    starts: NDArray[np.int64] | None

    def copy_into(self, values: NDArray[np.float32], texts: DistinctTexts) -> NDArray[np.int64]:
        """Copies the outputs of texts that are asked for. Returns: the numbers of these texts."""
        numbers = texts.find(self.keys)
        # A part may hold texts of another data set that the same teacher has read.
        is_wanted = numbers >= 0
        if self.starts is None or texts.starts is None:
            rows = np.flatnonzero(is_wanted)
            values[numbers[rows]] = self.logits[rows]
            return numbers[rows]
        sizes = np.diff(self.starts)
        rows = np.flatnonzero(is_wanted & (texts.sizes(np.maximum(numbers, 0)) == sizes))
        values[texts.outputs(numbers[rows])] = self.logits[ranges(self.starts[rows], sizes[rows])]
        return numbers[rows]
