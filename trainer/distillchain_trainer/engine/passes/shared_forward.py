"""Forward passes that all ranks share: one rank computes each row, and every rank gets all outputs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from distillchain_api.resource.training import Precision
from distillchain_trainer.engine.device.calling import in_eval_mode
from distillchain_trainer.engine.device.precision import autocast, device_of
from distillchain_trainer.engine.device.sharding import is_sharded
from distillchain_trainer.engine.encoding.blocks import blocks_of, outputs_within
from distillchain_trainer.engine.encoding.encoded import Encoded, Rows
from distillchain_trainer.engine.passes.forward import Answered, OutputsOf, forward, latency_ms, outputs_of_batch
from distillchain_trainer.engine.passes.pass_layers import PassLayers
from distillchain_trainer.engine.ranks.world import ALONE, World
from distillchain_trainer.errors import OutOfMemory, StopRequested, is_gpu_memory_short

# Ranks exchange outputs this often. Rare enough that the exchange takes no part of the time (about 10 ms), and often
# enough for progress lines and for a stop.
ROUND_S = 2.0
EXCHANGED_BYTES = 32 * 2**20  # outputs of all ranks in one exchange; it needs about three times as much memory
SHARDED_TOKENS = 16_384  # padded tokens of one pass on one GPU; it cannot be split when memory is short
SHARDED_LATENCY_PASSES = 4


@dataclass(frozen=True)
class Round:
    """Outputs of some rows, the same on every rank.

    Attributes:
        outputs: [rows, ...], or [items, ...] of the items that were not cut off, row after row.
        device_s: seconds of forward passes, summed over the ranks.
    """

    rows: NDArray[np.int64]
    outputs: NDArray[np.float32]
    device_s: float


def forward_in_rounds(
    world: World,
    model: Any,
    encoded: Encoded,
    outputs_of: OutputsOf,
    *,
    rows: Rows | None = None,
    precision: Precision,
    check: Callable[[NDArray[np.float32]], None] = lambda _: None,
    stop: Callable[[], bool],
    layers: PassLayers | None = None,
) -> Iterator[Round]:
    """Outputs in rounds, each row in one of them. With one process, a round is a batch.

    With several, a round has EXCHANGED_BYTES of outputs at most, or one row of each rank.

    Iterate within `autocast`, so that it converts the weights once and not for each batch.

    Args:
        rows: None: all rows.
        check: raises for outputs that cannot be used.
        stop: whether to end the round at once, which only the caller can then make the last one.
        layers: see forward. Those of a model that is split compute as they are.
    Raises: OutOfMemory when one row does not fit; LostPeers.
    """
    wanted = encoded.longest_first(rows)
    # With one process, and where all must make the same passes, a round is one pass.
    one_pass = world.is_alone or is_sharded(model)
    if is_sharded(model):
        answers = _in_step(world, model, encoded, outputs_of, wanted, precision)
    else:
        dealt = world.deal(wanted)
        answers = forward(model, encoded, outputs_of, rows=dealt, precision=precision, layers=layers)
    done = 0
    while done < len(wanted):
        for found in _exchanged(world, _own_part(answers, check, stop, one_pass=one_pass), encoded):
            done += len(found.rows)
            yield found


def never() -> bool:
    """For a computation that is stopped by other means, or not at all."""
    return False


def all_outputs(
    model: Any,
    encoded: Encoded,
    outputs_of: OutputsOf,
    *,
    precision: Precision,
    on_batch: Callable[[int, int], None],
    world: World = ALONE,
    stop: Callable[[], bool] = never,
) -> tuple[NDArray[np.float32], float]:
    """Outputs of all rows, and the seconds of forward passes, summed over the ranks.

    The outputs are [rows, ...]. For a task with items they are [items, ...], row after row, and zero for items that
    were cut off.

    Args:
        on_batch: gets the number of rows that are done, and of all.
        stop: whether to give up; asked after each round, and one rank is enough.
    Raises: StopRequested, OutOfMemory, LostPeers.
    """
    found: NDArray[np.float32] | None = None
    device_s, done = 0.0, 0
    with autocast(device_of(model), precision):
        for part in forward_in_rounds(world, model, encoded, outputs_of, precision=precision, stop=stop):
            if found is None:
                # Filled in place: a list of parts that is joined at the end would hold all outputs twice.
                found = np.zeros((encoded.output_count, *part.outputs.shape[1:]), dtype=np.float32)
            found[encoded.output_places(part.rows)] = part.outputs
            device_s += part.device_s
            done += len(part.rows)
            on_batch(done, len(encoded))
            (stopped,) = world.any(stop())
            if stopped:
                raise StopRequested
    assert found is not None, "a split without rows is refused when it is read"
    return found, device_s


def shared_latency_ms(
    world: World, model: Any, encoded: Encoded, outputs_of: OutputsOf, *, precision: Precision
) -> tuple[float, float]:
    """As latency_ms, on rank 0. Other ranks get zeros; they take part where the model is split."""
    if not is_sharded(model):
        return latency_ms(model, encoded, outputs_of, precision=precision) if world.is_main else (0.0, 0.0)
    times = []
    # A fixed number, because all ranks must make the same passes.
    for _ in range(1 + SHARDED_LATENCY_PASSES):
        (answer,) = _in_step(world, model, encoded, outputs_of, np.array([0]), precision)
        times.append(1000 * answer.elapsed_s)
    return float(np.quantile(times[1:], 0.5)), float(np.quantile(times[1:], 0.95))


def _in_step(
    world: World,
    model: Any,
    encoded: Encoded,
    outputs_of: OutputsOf,
    wanted: NDArray[np.int64],
    precision: Precision,
) -> Iterator[Answered]:
    """Passes of a model that is split: all ranks make equally many, each with its part of the same rows.

    Args:
        wanted: the longest first.
    """
    start = 0
    tokens = min(SHARDED_TOKENS, encoded.most_tokens or SHARDED_TOKENS)
    try:
        with in_eval_mode(model):
            while start < len(wanted):
                longest = int(encoded.lengths[wanted[start]])
                batch = wanted[start : start + world.size * max(1, tokens // max(longest, 1))].tolist()
                start += len(batch)
                rows = world.deal(batch)
                started = time.perf_counter()
                # A rank without rows takes part with one that does not count.
                outputs = _outputs_of_split(model, encoded, outputs_of, rows or batch[:1], precision)
                yield Answered(rows, outputs if rows else outputs[:0], time.perf_counter() - started)
    finally:
        # The outermost part stays whole after a pass, for the backward pass of a training.
        model.reshard()


def _outputs_of_split(
    model: Any, encoded: Encoded, outputs_of: OutputsOf, rows: list[int], precision: Precision
) -> NDArray[np.float32]:
    device = device_of(model)
    try:
        # Not inference_mode, in which FSDP's tensors could not be written again. Converted weights are not kept: those
        # of a model that is split may not fit.
        with torch.no_grad(), autocast(device, precision, keeps_casts=False):
            outputs: NDArray[np.float32] = outputs_of_batch(model, encoded, rows, outputs_of, device).cpu().numpy()
    except RuntimeError as error:
        if not is_gpu_memory_short(error):
            raise
        # microBatchSize does not help: these passes are not those of the training.
        raise OutOfMemory(
            f"the GPU has too little memory for a pass of the split model over {len(rows)} texts of "
            f"{encoded.width_of(rows)} tokens; split it over more GPUs (parallelism), use larger ones or lower "
            "spec.task.maxLength"
        ) from error
    return outputs


def _own_part(
    answers: Iterator[Answered],
    check: Callable[[NDArray[np.float32]], None],
    stop: Callable[[], bool],
    *,
    one_pass: bool,
) -> list[Answered]:
    """The next batches of this rank; none if it has computed its share."""
    started, batches, nbytes = time.monotonic(), [], 0
    for answer in answers:
        check(answer.outputs)
        batches.append(answer)
        nbytes += answer.outputs.nbytes
        if one_pass or time.monotonic() - started > ROUND_S or nbytes > EXCHANGED_BYTES or stop():
            break
    return batches


def _exchanged(world: World, batches: list[Answered], encoded: Encoded) -> Iterator[Round]:
    """Gives every rank the outputs of all, some at a time: outputs of many classes may take much memory."""
    if world.is_alone:
        (batch,) = batches
        yield Round(np.array(batch.rows, dtype=np.int64), batch.outputs, batch.elapsed_s)
        return
    # A rank that fails has not come here. Without the meeting, the others would wait for it in a collective.
    world.meet("forward passes")
    pieces = [piece for batch in batches for piece in _pieces(batch, encoded, EXCHANGED_BYTES // world.size)]
    # A rank without rows does not know the shape of the outputs.
    nothing = Answered([], np.zeros(0, dtype=np.float32), 0.0)
    # All ranks call the collectives equally often.
    for number in range(max(1, int(world.longest(len(pieces))))):
        piece = pieces[number] if number < len(pieces) else nothing
        yield Round(
            rows=np.concatenate(world.gather(np.array(piece.rows, dtype=np.int64))),
            outputs=np.concatenate(world.gather(piece.outputs)),
            device_s=float(np.concatenate(world.gather(np.array([piece.elapsed_s]))).sum()),
        )


def _pieces(batch: Answered, encoded: Encoded, nbytes: int) -> Iterator[Answered]:
    """A batch in pieces of so many bytes at most, or of one row."""
    sizes = np.ones(len(batch.rows), dtype=np.int64)
    if encoded.weights is not None:
        sizes = encoded.weights[np.asarray(batch.rows, dtype=np.int64)].astype(np.int64)
    first = 0
    for start, stop in blocks_of(sizes, outputs_within(nbytes, batch.outputs.shape[1:])):
        last = first + int(sizes[start:stop].sum())
        elapsed_s = batch.elapsed_s * (stop - start) / len(batch.rows)
        yield Answered(batch.rows[start:stop], batch.outputs[first:last], elapsed_s)
        first = last
