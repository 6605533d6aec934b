"""The teacher's outputs as they lie in the store: parts of bounded size, each named by the sha256 of its content.

An altered part is detected and deleted. Parts are read in blocks, because an older release wrote them of any size.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from distillchain_api.layout import logits_prefix
from distillchain_store.errors import ObjectMissing
from distillchain_store.store import Store, discard
from distillchain_trainer.engine.encoding.blocks import blocks_of, outputs_within
from distillchain_trainer.engine.encoding.distinct_texts import DistinctTexts, Keys
from distillchain_trainer.engine.encoding.encoded import ranges
from distillchain_trainer.errors import StopRequested

log = logging.getLogger(__name__)

# Outputs of one part, or of one block of a larger part. Needs about three times as much memory while it is written.
PART_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Part:
    """Outputs of some texts.

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


@dataclass(frozen=True)
class PartFile:
    """A downloaded part.

    Attributes:
        inner: the shape of one output.
    """

    path: Path
    keys: Keys
    starts: NDArray[np.int64] | None
    inner: tuple[int, ...]

    @classmethod
    def open(cls, path: Path) -> PartFile:
        """Reads all but the outputs."""
        with safetensors.safe_open(path, framework="numpy") as file:
            names = set(file.keys())
            starts = file.get_tensor("starts") if "starts" in names else None
            _, *inner = file.get_slice("logits").get_shape()
            return cls(path, file.get_tensor("keys"), starts, tuple(inner))

    def blocks(self) -> Iterator[Part]:
        """The whole part, a block at a time."""
        sizes = np.ones(len(self.keys), dtype=np.int64) if self.starts is None else np.diff(self.starts)
        most = outputs_within(PART_BYTES, self.inner)
        with safetensors.safe_open(self.path, framework="numpy") as file:
            logits, first = file.get_slice("logits"), 0
            for start, stop in blocks_of(sizes, most):
                last = first + int(sizes[start:stop].sum())
                starts = None if self.starts is None else self.starts[start : stop + 1] - self.starts[start]
                yield Part(self.keys[start:stop], logits[first:last], starts)
                first = last

    def is_finite(self) -> bool:
        """Whether all outputs are numbers."""
        return all(bool(np.isfinite(part.logits).all()) for part in self.blocks())


def stored_parts(store: Store, digest: str, *, folder: Path, stop: Callable[[], bool]) -> Iterator[PartFile]:
    """The parts that the store has, one after the other; each is on the disk until the next one is asked for.

    Raises: StopRequested.
    """
    path = folder / "logits.part"
    for item in store.list_objects(logits_prefix(digest)):
        if stop():
            raise StopRequested
        part = _fetch(store, item.key, path)
        if part is not None:
            yield part
        path.unlink(missing_ok=True)


def _fetch(store: Store, key: str, path: Path) -> PartFile | None:
    """One part; None: it is gone, or it was altered and is deleted."""
    try:
        fetched = store.download(key, path)
    except ObjectMissing:
        return None  # another pod found it altered
    # Checked before it is parsed: an altered file could make the parser fail instead.
    part = PartFile.open(path) if fetched.sha256 == Path(key).stem else None
    if part is None or not part.is_finite():
        log.warning("altered teacher logits are computed again", extra={"object": f"{store.uri}/{key}"})
        # Or every later run would download and reject it again.
        discard(store, key, [key])
        return None
    return part


def write_parts(
    store: Store,
    digest: str,
    *,
    folder: Path,
    texts: DistinctTexts,
    numbers: NDArray[np.int64],
    keys: Callable[[NDArray[np.int64]], Keys],
    values: NDArray[np.float32],
) -> None:
    """Stores the outputs of some texts, given by their numbers; `values` has those of all texts.

    Args:
        keys: of some texts.
    """
    for start, stop in blocks_of(texts.sizes(numbers), outputs_within(PART_BYTES, values.shape[1:])):
        block = numbers[start:stop]
        part: dict[str, NDArray[Any]] = {"keys": keys(block), "logits": values[texts.outputs(block)]}
        if texts.starts is not None:
            part["starts"] = np.concatenate([[0], np.cumsum(texts.sizes(block))])
        content = safetensors.numpy.save(part)
        name = hashlib.sha256(content).hexdigest()
        # Named by its content: two pods that compute the same rows write the same object.
        path = folder / f"{name}.safetensors"
        path.write_bytes(content)
        store.upload(f"{logits_prefix(digest)}{name}.safetensors", path)
        path.unlink()
