"""What the teacher answers for every training row: computed once for all epochs and kept in the store.

One folder per teacher and way to read texts. In it, outputs are keyed by the row's text, so rows may be moved,
repeated, left out or added. They are written in parts (output_parts.py), and an interrupted pass continues from the
parts that it wrote. While a stage runs, all outputs are in one file of each node, which its processes map, so that they
are in memory once.
"""

from __future__ import annotations

import functools
import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from distillchain_api.digests import sha256_of
from distillchain_api.layout import logits_prefix
from distillchain_api.resource.training import Training
from distillchain_api.task import Task
from distillchain_store.store import Store
from distillchain_trainer.data.mapped_columns import key_array
from distillchain_trainer.engine.device.precision import autocast, device_of
from distillchain_trainer.engine.encoding.blocks import blocks_of, outputs_within
from distillchain_trainer.engine.encoding.distinct_texts import DistinctTexts, Keys
from distillchain_trainer.engine.encoding.encoded import Encoded
from distillchain_trainer.engine.passes.forward import OutputsOf
from distillchain_trainer.engine.passes.node_array import NodeArray, copy_to_nodes
from distillchain_trainer.engine.passes.output_parts import PART_BYTES, stored_parts, write_parts
from distillchain_trainer.engine.passes.pass_layers import PassLayers, pass_modes
from distillchain_trainer.engine.passes.shared_forward import Round, forward_in_rounds
from distillchain_trainer.engine.ranks.world import ALONE, World
from distillchain_trainer.errors import StopRequested

log = logging.getLogger(__name__)

# Part of the digest. Raise it when the parts or the computation change, so that older parts are not found.
OUTPUTS_VERSION = 5

SORTED_ROWS = 2**19  # that are batched by length
SENT_BYTES = 16 * 2**20  # of outputs that are sent to other nodes at a time


@dataclass(frozen=True)
class TeacherOutputs:
    """The teacher's outputs, one for each distinct text.

    Attributes:
        values: [distinct texts, ...] in the teacher's own order of columns, mapped from a file. For a task with items
            they are [items of the distinct texts, ...], and zero for items that the teacher's tokenizer cut off.
        place: for each row the index of its text in `values`, or in `starts` [rows].
        columns: the teacher's columns in the order of the task; None: they are in order.
        reused: they were all in the store.
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


def outputs_digest(teacher_digest: str, task: Task, training: Training, *, reads_with: str = "") -> str:
    """What decides the teacher's output for a text: its files, and how the text is read and computed.

    Not the set of texts: a subset or superset of the rows finds what was computed before.

    Args:
        reads_with: of the loaded teacher, whose tokenizer may be another one than that of its files.
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
            **({"tokenizer": reads_with} if reads_with else {}),
        }
    )


@dataclass
class TeacherPass:
    """One pass of a teacher over the rows of a split.

    Attributes:
        digest: from `outputs_digest`.
        check: raises for outputs that are no numbers.
        folder: for files, shared by the processes of a node.
        stop: whether to write what is computed and stop.
        world: the ranks that share the rows. Rank 0 reads and writes the store; the first rank of each node writes the
            file that all ranks of the node map.
        on_missing: of a teacher that a pass has asked. Raises if the store lacks the outputs of some texts, given their
            number and that of all texts. None: they are computed.
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
    on_missing: Callable[[int, int], None] | None = None

    def run(self) -> TeacherOutputs:
        """Outputs of every row, from the store where it has them.

        Raises: StopRequested, once what is computed is in the store; whatever `check` raises, and then nothing of that
            batch is kept.
        """
        started = time.perf_counter()
        texts = DistinctTexts.of(
            self._keys, self.encoded.item_counts, folder=self.folder / f"texts-{self.world.local_rank}"
        )
        values, known = self._known(texts)
        missing = len(texts) - int(np.count_nonzero(known))
        elapsed_s = 0.0
        if missing and self.on_missing is not None:
            self.on_missing(missing, len(texts))
        if missing:
            values, elapsed_s = self._compute(known, values, texts)
        # The first rank of the node may still be writing to the file.
        self.world.meet("teacher logits written")
        found = (
            "teacher logits reused from the store" if self.on_missing is None else "teacher logits read from its pass"
        )
        log.info(
            "teacher logits computed" if missing else found,
            extra={
                "logits": f"{self.store.uri}/{logits_prefix(self.digest)}",
                "rows": len(texts),
                "computed": missing,
                "elapsed_s": round(time.perf_counter() - started, 2),
            },
        )
        assert values is not None, "a split without rows is refused when it is read"
        return TeacherOutputs(
            values,
            texts.place,
            self.columns,
            reused=not missing,
            elapsed_s=elapsed_s,
            starts=texts.starts,
            answered=self.encoded.answered,
        )

    @functools.cached_property
    def _keys(self) -> Keys:
        return key_array(self.keys, self.folder / f"keys-{self.world.local_rank}.u8")

    @property
    def _file(self) -> NodeArray:
        """For the outputs of all texts."""
        return NodeArray(self.folder / f"outputs-{self.digest[:16]}.f32", self.world)

    def _compute(
        self, known: NDArray[np.bool_], values: NDArray[np.float32] | None, texts: DistinctTexts
    ) -> tuple[NDArray[np.float32], float]:
        """Fills `values` for the texts that are not known, and writes them to the store, some from time to time."""
        elapsed_s, done, since = 0.0, 0, time.monotonic()
        missing = len(texts) - int(np.count_nonzero(known))
        unwritten: list[NDArray[np.int64]] = []
        unwritten_bytes = 0
        tokens = int(self.encoded.lengths[texts.first_rows[~known]].sum()) // self.world.size
        layers = PassLayers(self.model, pass_modes(self.model), tokens=tokens)
        # Around all batches, so that autocast converts the weights once and not for each.
        with closing(layers), autocast(device_of(self.model), self.training.precision):
            for part in self._rounds(known, texts, layers):
                if values is None:
                    values = self._file.shared((texts.output_count, *part.outputs.shape[1:]))
                if self.world.leads_node:
                    values[self._places(part.rows, texts)] = part.outputs
                unwritten.append(part.rows)
                unwritten_bytes += part.outputs.nbytes
                elapsed_s += part.device_s / self.world.size
                done += len(part.rows)
                self.on_batch(done, missing)
                stop, due = self.world.any(self.stop(), time.monotonic() - since > self.save_interval_s)
                # A stop writes first: the next attempt then computes only the rest.
                if stop or due or unwritten_bytes > PART_BYTES:
                    self._write(unwritten, values, texts)
                    unwritten, unwritten_bytes, since = [], 0, time.monotonic()
                if stop:
                    raise StopRequested
        assert values is not None
        if unwritten:
            self._write(unwritten, values, texts)
        return values, elapsed_s

    def _rounds(self, known: NDArray[np.bool_], texts: DistinctTexts, layers: PassLayers) -> Iterator[Round]:
        """Outputs of the texts that are not known."""
        # Some rows at a time: sorting all of them by length would take 24 bytes for each.
        for start in range(0, len(texts.place), SORTED_ROWS):
            numbers = texts.place[start : start + SORTED_ROWS]
            rows = np.arange(start, start + len(numbers))
            missing = rows[(texts.first_rows[numbers] == rows) & ~known[numbers]]
            if len(missing):
                yield from forward_in_rounds(
                    self.world,
                    self.model,
                    self.encoded,
                    self.outputs_of,
                    rows=missing,
                    precision=self.training.precision,
                    # Before anything is stored, or the next attempt would reuse the NaN.
                    check=self.check,
                    stop=self.stop,
                    layers=layers,
                )

    def _places(self, rows: NDArray[np.int64], texts: DistinctTexts) -> NDArray[np.int64]:
        """Where the outputs of some rows, without padding, belong in the values of all texts."""
        if texts.starts is None or self.encoded.item_starts is None or self.encoded.weights is None:
            return texts.place[rows]
        # The items of a text are numbered as those of its row, from another start.
        shift = texts.starts[texts.place[rows]] - self.encoded.item_starts.numpy()[rows]
        places: NDArray[np.int64] = self.encoded.output_places(rows) + np.repeat(shift, self.encoded.weights[rows])
        return places

    def _write(self, parts: list[NDArray[np.int64]], values: NDArray[np.float32], texts: DistinctTexts) -> None:
        if self.world.is_main:
            rows = np.concatenate(parts)
            write_parts(
                self.store,
                self.digest,
                folder=self.folder,
                texts=texts,
                numbers=texts.place[rows],
                keys=lambda numbers: self._keys[texts.first_rows[numbers]],
                values=values,
            )
        # Rank 0 may wait for the store for half an hour, and the next pass of a split model has a time limit.
        self.world.meet("teacher outputs stored")

    def _known(self, texts: DistinctTexts) -> tuple[NDArray[np.float32] | None, NDArray[np.bool_]]:
        """What the store has: values in the order of `texts`, and which texts are known.

        Rank 0 reads it; it is sent to the other nodes in blocks.
        """
        values, known = self._stored(texts) if self.world.is_main else (None, np.zeros(len(texts), dtype=bool))
        if self.world.is_alone:
            return values, known
        inner = json.loads(
            self.world.from_main(
                lambda: json.dumps(None if values is None else values.shape[1:]), "reading of teacher logits"
            )
        )
        if inner is None:
            return None, known
        values = self._file.shared((texts.output_count, *inner), created=values)
        # A byte for each text, on every rank: they must agree on what is missing.
        flags = torch.from_numpy(known.view(np.uint8))
        self.world.copy_from_main([flags])
        numbers = np.flatnonzero(known)
        most = outputs_within(SENT_BYTES, tuple(inner))
        blocks = (texts.outputs(numbers[start:stop]) for start, stop in blocks_of(texts.sizes(numbers), most))
        copy_to_nodes(self.world, values, blocks)
        return values, known

    def _stored(self, texts: DistinctTexts) -> tuple[NDArray[np.float32] | None, NDArray[np.bool_]]:
        """As `_known`, for this process alone."""
        values: NDArray[np.float32] | None = None
        known = np.zeros(len(texts), dtype=bool)
        for part in stored_parts(self.store, self.digest, folder=self.folder, stop=self.stop):
            if values is None:
                values = self._file.create((texts.output_count, *part.inner))
            if part.inner == values.shape[1:]:
                for block in part.blocks():
                    known[block.copy_into(values, texts)] = True
        return values, known
