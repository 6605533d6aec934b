"""Forward passes over encoded rows: batches of about equal length, bounded by tokens, never by rows alone."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distillchain_api.resource.spec import Precision
from distillchain_trainer.engine.encoding import Encoded
from distillchain_trainer.engine.precision import autocast, device_of
from distillchain_trainer.errors import OutOfMemory

log = logging.getLogger(__name__)

# Padded tokens and rows of one batch. On two CPU cores larger batches gain nothing (measured with MiniLM-L6 and
# BERT-tiny); a GPU needs them to be busy at all.
CPU_TOKENS, CPU_ROWS = 8_192, 64
GPU_TOKENS, GPU_ROWS = 65_536, 4_096

LATENCY_ROWS = 64
LATENCY_S = 2.0  # a teacher of a second per row is measured on two rows: enough to know that it is slow


@dataclass(frozen=True)
class Answered:
    """The outputs of one batch."""

    rows: list[int]
    outputs: NDArray[np.float32]
    elapsed_s: float


def forward(
    model: Any,
    encoded: Encoded,
    outputs_of: Callable[[Any], Tensor],
    *,
    rows: Sequence[int] | None = None,
    precision: Precision,
) -> Iterator[Answered]:
    """Outputs batch by batch, the longest rows first, so that too little memory shows at once.

    A batch that does not fit the GPU is split. The bound counts tokens, so after a long text the batches grow again.

    Args:
        outputs_of: picks the tensor [rows, ...] out of what the model returns.
        rows: None: all rows.
    Raises: OutOfMemory when one row does not fit.
    """
    lengths = encoded.lengths
    waiting = sorted(range(len(encoded)) if rows is None else rows, key=lambda row: -lengths[row])
    device = device_of(model)
    tokens, most_rows = (CPU_TOKENS, CPU_ROWS) if device.type == "cpu" else (GPU_TOKENS, GPU_ROWS)
    was_training = model.training
    model.eval()
    start = 0
    try:
        while start < len(waiting):
            # The rows are sorted, so the first row of a batch is its longest, and this bounds the padded tokens.
            longest = lengths[waiting[start]]
            batch = waiting[start : start + max(1, min(tokens // max(longest, 1), most_rows))]
            started = time.perf_counter()
            outputs = None
            try:
                outputs = _outputs(model, encoded.batch(batch), outputs_of, device, precision)
            except torch.OutOfMemoryError as error:
                if len(batch) == 1:
                    raise OutOfMemory(
                        f"the GPU has too little memory for one text of {longest} tokens; lower spec.task.maxLength "
                        "or use a larger GPU"
                    ) from error
            if outputs is None:  # not inside `except`, which keeps the tensors that did not fit alive
                tokens = len(batch) * longest // 2
                log.warning("the GPU has too little memory for a batch; it is split", extra={"tokens": tokens})
                # Releases what torch has reserved for the batch that failed, so that smaller blocks can be allocated.
                torch.cuda.empty_cache()
                continue
            yield Answered(batch, outputs, time.perf_counter() - started)
            start += len(batch)
    finally:
        model.train(was_training)


def all_outputs(
    model: Any,
    encoded: Encoded,
    outputs_of: Callable[[Any], Tensor],
    *,
    precision: Precision,
    on_batch: Callable[[int, int], None],
) -> tuple[NDArray[np.float32], float]:
    """Outputs [rows, ...] of all rows, and the seconds that the model took."""
    found: NDArray[np.float32] | None = None
    elapsed_s, done = 0.0, 0
    for answer in forward(model, encoded, outputs_of, precision=precision):
        if found is None:
            # Filled in place: a list of batches that is joined at the end would hold all outputs twice.
            found = np.zeros((len(encoded), *answer.outputs.shape[1:]), dtype=np.float32)
        found[answer.rows] = answer.outputs
        elapsed_s += answer.elapsed_s
        done += len(answer.rows)
        on_batch(done, len(encoded))
    assert found is not None, "a split without rows is refused when it is read"
    return found, elapsed_s


def latency_ms(
    model: Any, encoded: Encoded, outputs_of: Callable[[Any], Tensor], *, precision: Precision
) -> tuple[float, float]:
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
            _outputs(model, encoded.batch([row]), outputs_of, device, precision)
            times.append(1000 * (time.perf_counter() - started))
            # At least one time must be counted, also for a model that takes longer than LATENCY_S.
            if sum(times) > 1000 * LATENCY_S and len(times) > 1:
                break
    finally:
        model.train(was_training)
    return float(np.quantile(times[1:], 0.5)), float(np.quantile(times[1:], 0.95))


def _outputs(
    model: Any,
    inputs: dict[str, Tensor],
    outputs_of: Callable[[Any], Tensor],
    device: torch.device,
    precision: Precision,
) -> NDArray[np.float32]:
    with torch.inference_mode(), autocast(device, precision):
        answer = model(**{name: value.to(device) for name, value in inputs.items()})
        # float(): numpy has no bfloat16. cpu() waits for the GPU, so that callers time the whole computation.
        outputs: NDArray[np.float32] = outputs_of(answer).float().cpu().numpy()
    return outputs
