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
from distillchain_trainer.engine.device.calling import call_model
from distillchain_trainer.engine.device.memory import free_bytes
from distillchain_trainer.engine.device.modes import Mode
from distillchain_trainer.engine.device.precision import autocast, device_of
from distillchain_trainer.engine.device.transfer import moved
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
    lengths = encoded.lengths
    layers = layers or PassLayers(model, (Mode.EAGER,))
    waiting = encoded.longest_first(rows)
    device = device_of(model)
    keeps_casts = has_room_for_casts(model)
    tokens, most_rows = (CPU_TOKENS, CPU_ROWS) if device.type == "cpu" else (GPU_TOKENS, GPU_ROWS)
    tokens = min(tokens, encoded.most_tokens or tokens)
    if encoded.nbytes < RESIDENT_BYTES:
        encoded = encoded.to(device)
    was_training = model.training
    model.eval()
    # On a GPU, the next batch is launched before the outputs of the last are read.
    unread: deque[_Running] = deque()
    start = 0
    since = time.perf_counter()
    try:
        while start < len(waiting) or unread:
            # The rows are sorted, so the first row of a batch is its longest, and this bounds the padded tokens.
            longest = int(lengths[waiting[start]]) if start < len(waiting) else 0
            batch = waiting[start : start + max(1, min(tokens // max(longest, 1), most_rows))].tolist()
            try:
                if batch:
                    launch = partial(_launch, model, encoded, batch, outputs_of, device, precision, keeps_casts)
                    unread.append(layers.run(launch))
            except RuntimeError as error:
                if not is_gpu_memory_short(error):
                    raise
                if len(batch) == 1 and not unread:
                    raise OutOfMemory(
                        f"the GPU has too little memory for one text of {longest} tokens; lower spec.task.maxLength "
                        "or use a larger GPU"
                    ) from error
                tokens = max(len(batch) * longest // 2, longest)
                log.warning("the GPU has too little memory for a batch; it is split", extra={"tokens": tokens})
                short = True
            else:
                short = False
                start += len(batch)
            if short:  # not inside `except`, which keeps the tensors that did not fit alive
                # Releases what torch has reserved for the batch that failed, so that smaller blocks can be allocated.
                torch.cuda.empty_cache()
            if unread and (short or not batch or len(unread) > launched_ahead(device)):
                done = unread.popleft()
                outputs = done.read()
                elapsed_s = time.perf_counter() - since
                layers.batch_done(elapsed_s, int(lengths[done.rows].sum()))
                yield Answered(done.rows, outputs, elapsed_s)
                since = time.perf_counter()
    finally:
        model.train(was_training)


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
    was_training = model.training
    model.eval()
    # Spread over the split, because its file may be sorted by class or by length.
    picked = np.linspace(0, len(encoded) - 1, num=min(LATENCY_ROWS, len(encoded)), dtype=int).tolist()
    times: list[float] = []
    try:
        for row in [picked[0], *picked]:  # the first pass of a shape is slower and not counted
            started = time.perf_counter()
            _launch(model, encoded, [row], outputs_of, device, precision).read()
            times.append(1000 * (time.perf_counter() - started))
            # At least one time must be counted, also for a model that takes longer than LATENCY_S.
            if sum(times) > 1000 * LATENCY_S and len(times) > 1:
                break
    finally:
        model.train(was_training)
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


def _launch(
    model: Any,
    encoded: Encoded,
    rows: list[int],
    outputs_of: OutputsOf,
    device: torch.device,
    precision: Precision,
    keeps_casts: bool = False,
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
    answer = call_model(model, _on(device, encoded.batch(rows, width=width)))
    outputs = outputs_of(answer, _on(device, encoded.items(rows, width=width)))
    # float(): numpy has no bfloat16.
    return encoded.without_padding(outputs, rows, width=width).float()


def _on(device: torch.device, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: moved(tensor, device) for name, tensor in tensors.items()}
