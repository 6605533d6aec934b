"""A whole training step as one CUDA graph: forward, loss, backward, clipping, AdamW.

A small student is limited by the launch of hundreds of kernels per step. A graph launches them all at once.
Method: "Accelerating PyTorch with CUDA Graphs", pytorch.org/blog/accelerating-pytorch-with-cuda-graphs.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from distillchain_trainer.engine.device.transfer import moved, row_numbers
from distillchain_trainer.engine.training.step import Work
from distillchain_trainer.engine.training.widths import width_for

log = logging.getLogger(__name__)


class Shape(NamedTuple):
    """What decides which kernels a step consists of: one graph for each."""

    width: int
    full: bool
    """No row is shorter than the width, so attention needs no mask."""


class Replayable(Protocol):
    """A step that was recorded."""

    def replay(self) -> None:
        """Makes the step again, with what the input tensors hold now."""


@dataclass(frozen=True)
class StepDone:
    """The loss of a step, on the device, and whether the step was replayed."""

    loss: Tensor
    replayed: bool


class CapturedStep:
    """Steps of at most `size` rows in one pass, recorded at the second step of a shape and replayed from then on.

    A graph reads fixed tensors: `rows` and `weights` are overwritten before each step. A row's weight is its share of
    the mean loss; shorter batches are filled up with rows of weight 0. Gradients are kept between steps, because all
    graphs add to the same ones.
    """

    def __init__(self, work: Work, size: int, *, widths: Sequence[int]) -> None:
        self._work, self._size, self._widths = work, size, widths
        self._rows = torch.zeros(size, dtype=torch.long, device=work.device)
        self._weights = torch.zeros(size, device=work.device)
        self._loss = torch.zeros((), device=work.device)
        self._graphs: dict[Shape, Replayable] = {}
        self._seen: set[Shape] = set()
        self._filled = (0, 0)  # rows that count, and what the sum of their losses is divided by
        self._stream: torch.cuda.Stream | None = None

    def run(self, batch: Sequence[int]) -> StepDone:
        """One optimizer step on `batch`; its learning rate is the one that the optimizer's tensor holds."""
        shape = self.shape(batch)
        self._fill(batch)
        graph = self._graphs.get(shape)
        if graph is None and shape in self._seen:
            graph = self._graphs[shape] = self._capture(shape)
        if graph is not None:
            graph.replay()
        else:
            self._warm_up(shape)
            self._seen.add(shape)
        # A copy, because the next replay overwrites it.
        return StepDone(self._loss.clone(), replayed=graph is not None)

    def has_graph_for(self, batch: Sequence[int]) -> bool:
        """Whether a step on `batch` is a mere replay."""
        return self.shape(batch) in self._graphs

    def shape(self, batch: Sequence[int]) -> Shape:
        """The shape that `batch` is padded to."""
        longest, full = self._work.width(batch)
        width = width_for(longest, self._widths)
        return Shape(width, full and width == longest)

    def _fill(self, batch: Sequence[int]) -> None:
        missing = self._size - len(batch)
        self._rows.copy_(row_numbers([*batch, *[batch[0]] * missing], self._work.device))
        weight = self._work.weight(batch)
        if (len(batch), weight) != self._filled:
            weights = torch.tensor([1 / weight] * len(batch) + [0.0] * missing)
            self._weights.copy_(moved(weights, self._work.device))
            self._filled = (len(batch), weight)

    def _step(self, shape: Shape) -> None:
        """The step itself; everything here is recorded, so nothing may depend on a value of a tensor."""
        self._work.optimizer.zero_grad(set_to_none=False)
        losses = self._work.losses(self._rows, width=shape.width, full=shape.full)
        loss = (losses * self._weights).sum()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self._work.update()
        self._loss.copy_(loss.detach())

    def _warm_up(self, shape: Shape) -> None:
        """The first step of a shape: libraries allocate their workspaces, which they must not do while recording."""
        # Always the same stream, because torch keeps freed memory for the stream that used it.
        if self._stream is None:
            self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            self._step(shape)
        torch.cuda.current_stream().wait_stream(self._stream)

    def _capture(self, shape: Shape) -> Replayable:
        """Records the step without executing it. Raises: RuntimeError for an operation that cannot be recorded."""
        # Calls of other threads do no harm: the backward pass has a thread of its own, which may load a kernel.
        try:
            return self._record(shape, errors="thread_local")
        except RuntimeError as error:
            log.info("recording again without checks of calls outside the recording", extra={"why": repr(error)[:300]})
        return self._record(shape, errors="relaxed")

    def _record(self, shape: Shape, *, errors: str) -> Replayable:
        graph = torch.cuda.CUDAGraph()
        # One pool of memory for all graphs, because they never run at the same time.
        first = next(iter(self._graphs.values()), None)
        pool = first.pool() if isinstance(first, torch.cuda.CUDAGraph) else None
        numbers = torch.cuda.get_rng_state(self._work.device)
        try:
            with torch.cuda.graph(graph, pool=pool, stream=self._stream, capture_error_mode=errors):
                self._step(shape)
        except Exception:  # whatever cannot be recorded: the next step must be able to draw
            _replace_generator(self._work.device, numbers)
            raise
        return graph


def _replace_generator(device: torch.device, numbers: Tensor) -> None:
    """Gives a GPU new random numbers, in a given state: after a failed recording the old ones refuse to be drawn."""
    fresh = torch.Generator(device)
    fresh.set_state(numbers)
    default = torch.cuda.default_generators[device.index or 0]
    default.graphsafe_set_state(fresh.graphsafe_get_state())
