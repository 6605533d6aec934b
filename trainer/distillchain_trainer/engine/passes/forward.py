"""Forward passes over encoded rows: batches of about equal length, bounded by tokens, never by rows alone."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distillchain_api.resource.training import Precision
from distillchain_trainer.engine.device.calling import call_model, in_eval_mode
from distillchain_trainer.engine.device.memory import free_bytes
from distillchain_trainer.engine.device.modes import Mode
from distillchain_trainer.engine.device.precision import autocast, device_of
from distillchain_trainer.engine.device.transfer import all_moved
from distillchain_trainer.engine.encoding.encoded import Encoded, Rows
from distillchain_trainer.engine.passes.pass_layers import PassLayers
from distillchain_trainer.errors import OutOfMemory, is_gpu_memory_short

log = logging.getLogger(__name__)

# Padded tokens and rows of one batch. On two CPU cores larger batches gain nothing (measured with MiniLM-L6 and
# BERT-tiny); a GPU needs them to be busy at all.
CPU_TOKENS, CPU_ROWS = 8_192, 64
GPU_TOKENS, GPU_ROWS = 65_536, 4_096

CASTS_SHARE = 0.5  # of the free memory of a GPU; the passes need the rest
RESIDENT_BYTES = 2**30  # token ids of a split up to this size are copied to the GPU as a whole

LATENCY_ROWS = 64
LATENCY_S = 2.0  # a teacher of a second per row is measured on two rows: enough to know that it is slow


OutputsOf = Callable[[Any, dict[str, Tensor]], Tensor]
"""Picks the outputs [rows, ...], or [rows, width, ...] for the items of the rows, out of what the model returns.

The second argument is what Encoded.items returns for the rows of the batch.
"""


@dataclass(frozen=True)
class Answered:
    """The outputs of one batch: [rows, ...], or [items, ...] of the items that were not cut off, row after row."""

    rows: list[int]
    outputs: NDArray[np.float32]
    elapsed_s: float
    """Since the batch before was returned. The next batch may be computed meanwhile, so only the sum says something."""


def forward(
    model: Any,
    encoded: Encoded,
    outputs_of: OutputsOf,
    *,
    rows: Rows | None = None,
    precision: Precision,
    layers: PassLayers | None = None,
) -> Iterator[Answered]:
    """Outputs batch by batch, the longest rows first, so that too little memory shows at once.

    A batch that does not fit the GPU is split. The bound counts tokens, so after a long text the batches grow again.

    Args:
        outputs_of: see OutputsOf.
        rows: None: all rows.
        layers: of the model, for a pass that may be worth a compilation; None: they compute as they are.
    Raises: OutOfMemory when one row does not fit.
    """
    device, lengths = device_of(model), encoded.lengths
    layers = layers or PassLayers(model, (Mode.EAGER,))
    batches = _Batches(encoded, encoded.longest_first(rows), device)
    keeps_casts = has_room_for_casts(model)
    if encoded.nbytes < RESIDENT_BYTES:
        encoded = encoded.to(device)
    launch = partial(_launch, model, encoded, outputs_of, device, precision, keeps_casts)
    # On a GPU, the next batch is launched before the outputs of the last are read.
    unread: deque[_Running] = deque()
    since = time.perf_counter()
    with in_eval_mode(model):
        while batches.has_next or unread:
            launched = _launch_next(batches, launch, layers, is_alone=not unread)
            if launched:
                unread.append(launched)
            if unread and (not launched or len(unread) > launched_ahead(device)):
                done = unread.popleft()
                outputs = done.read()
                elapsed_s = time.perf_counter() - since
                layers.batch_done(elapsed_s, int(lengths[done.rows].sum()))
                yield Answered(done.rows, outputs, elapsed_s)
                since = time.perf_counter()


def launched_ahead(device: torch.device) -> int:
    """Batches that are launched before the outputs of an earlier one are read; each needs the memory of a batch."""
    return 0 if device.type == "cpu" else 1


def has_room_for_casts(model: Any) -> bool:
    """Whether a GPU has room for the weights in bfloat16 beside those in float32, and for the passes."""
    device = device_of(model)
    if device.type == "cpu":
        return True
    nbytes = sum(weight.nbytes for weight in model.parameters() if weight.dtype == torch.float32)
    return bool(nbytes / 2 < CASTS_SHARE * free_bytes(device))


def latency_ms(model: Any, encoded: Encoded, outputs_of: OutputsOf, *, precision: Precision) -> tuple[float, float]:
    """Milliseconds of a forward pass of one row: median and 95th percentile over rows spread over the split."""
    device = device_of(model)
    # Spread over the split, because its file may be sorted by class or by length.
    picked = np.linspace(0, len(encoded) - 1, num=min(LATENCY_ROWS, len(encoded)), dtype=int).tolist()
    times: list[float] = []
    with in_eval_mode(model):
        for row in [picked[0], *picked]:  # the first pass of a shape is slower and not counted
            started = time.perf_counter()
            _launch(model, encoded, outputs_of, device, precision, False, [row]).read()
            times.append(1000 * (time.perf_counter() - started))
            # At least one time must be counted, also for a model that takes longer than LATENCY_S.
            if sum(times) > 1000 * LATENCY_S and len(times) > 1:
                break
    return float(np.quantile(times[1:], 0.5)), float(np.quantile(times[1:], 0.95))


@dataclass(frozen=True)
class _Running:
    """A batch that the device may still compute."""

    rows: list[int]
    outputs: Tensor
    done: torch.cuda.Event | None

    def read(self) -> NDArray[np.float32]:
        """Waits for the batch."""
        if self.done is not None:
            self.done.synchronize()
        outputs: NDArray[np.float32] = self.outputs.numpy()
        return outputs


class _Batches:
    """Rows in batches, the longest first. A batch has a limited number of rows and, with padding, of tokens."""

    def __init__(self, encoded: Encoded, rows: NDArray[np.int64], device: torch.device) -> None:
        self._rows = rows
        self._lengths = encoded.lengths
        self._start = 0
        tokens, self._most_rows = (CPU_TOKENS, CPU_ROWS) if device.type == "cpu" else (GPU_TOKENS, GPU_ROWS)
        self._most_tokens = min(tokens, encoded.most_tokens or tokens)

    @property
    def has_next(self) -> bool:
        return self._start < len(self._rows)

    @property
    def longest(self) -> int:
        """Tokens of the longest row of the next batch: its first, because the rows are sorted."""
        return int(self._lengths[self._rows[self._start]])

    def peek(self) -> list[int]:
        """The rows of the next batch, at least one."""
        size = max(1, min(self._most_tokens // max(self.longest, 1), self._most_rows))
        rows: list[int] = self._rows[self._start : self._start + size].tolist()
        return rows

    def take(self, batch: list[int]) -> None:
        """Goes on to the batch after this one."""
        self._start += len(batch)

    def halve(self, batch: list[int]) -> None:
        """Lowers the limit to half the tokens of this batch. The next batch starts with the same row."""
        self._most_tokens = max(len(batch) * self.longest // 2, self.longest)
        log.warning("the GPU has too little memory for a batch; it is split", extra={"tokens": self._most_tokens})


def _launch_next(
    batches: _Batches, launch: Callable[[list[int]], _Running], layers: PassLayers, *, is_alone: bool
) -> _Running | None:
    """Starts the next batch. None: no row is left, or the GPU has too little memory, and the next batch is smaller.

    Args:
        is_alone: no other batch is in the memory.
    Raises: OutOfMemory when one row alone does not fit.
    """
    if not batches.has_next:
        return None
    batch = batches.peek()
    try:
        running = layers.run(partial(launch, batch))
    except RuntimeError as error:
        if not is_gpu_memory_short(error):
            raise
        if len(batch) == 1 and is_alone:
            raise OutOfMemory(
                f"the GPU has too little memory for one text of {batches.longest} tokens; lower spec.task.maxLength "
                "or use a larger GPU"
            ) from error
    else:
        batches.take(batch)
        return running
    # Not inside `except`, which keeps the tensors that did not fit alive.
    batches.halve(batch)
    # Releases what torch has reserved for the batch that failed, so that smaller blocks can be allocated.
    torch.cuda.empty_cache()
    return None


def _launch(
    model: Any,
    encoded: Encoded,
    outputs_of: OutputsOf,
    device: torch.device,
    precision: Precision,
    keeps_casts: bool,
    rows: list[int],
) -> _Running:
    # Not inference_mode, within which autocast converts the weights for each batch again.
    with torch.no_grad(), autocast(device, precision, keeps_casts=keeps_casts):
        outputs = outputs_of_batch(model, encoded, rows, outputs_of, device)
        if device.type == "cpu":
            return _Running(rows, outputs, None)
        # An event and not cpu(), which would also wait for the batch that is launched next.
        host = torch.empty(outputs.shape, dtype=outputs.dtype, pin_memory=True)
        host.copy_(outputs, non_blocking=True)
        done = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        done.record()
        return _Running(rows, host, done)


def outputs_of_batch(
    model: Any, encoded: Encoded, rows: Sequence[int], outputs_of: OutputsOf, device: torch.device
) -> Tensor:
    """One forward pass: outputs as in Answered, on the device."""
    width = encoded.width_of(rows)
    answer = call_model(model, all_moved(encoded.batch(rows, width=width), device))
    outputs = outputs_of(answer, all_moved(encoded.items(rows, width=width), device))
    # float(): numpy has no bfloat16.
    return encoded.without_padding(outputs, rows, width=width).float()
