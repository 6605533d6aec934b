"""Reference training loops in plain torch: eager, captured in CUDA graphs, and compiled.

Written for this bench alone. They show what a careful user gets without a framework, and share no code with the
trainer's engine. All use AdamW without weight decay, a linear learning rate, clipping to a norm of 1, and dropout.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .sizes import MAX_GRAD_NORM

GROUPED_BATCHES = 50  # rows are sorted by length within so many batches
WIDTHS = (8, 12, 16, 24, 32, 48, 66)  # tokens that batches are padded to before they are captured
WARM_UP_STEPS = 3  # before the first capture, as torch's documentation advises; one for each further width


@dataclass(frozen=True)
class Rows:
    """Training rows, all padded to the longest.

    Attributes:
        ids: [N, T].
        lengths: [N].
        targets: teacher logits [N, C], or class indices [N].
    """

    ids: Tensor
    lengths: Tensor
    targets: Tensor

    def to(self, device: torch.device) -> Rows:
        return Rows(self.ids.to(device), self.lengths.to(device), self.targets.to(device))


@dataclass(frozen=True)
class Timing:
    """A measured loop.

    Attributes:
        setup_s: capture or compilation.
        losses: of every step, from the first on.
    """

    step_s: float
    setup_s: float
    losses: list[float]
    peak_memory_bytes: int


def grouped_batches(lengths: Sequence[int], batch: int, *, epochs: int, seed: int = 0) -> list[list[int]]:
    """Full batches of rows of about equal length, in random order; the rows left over are dropped."""
    dice = random.Random(seed)
    batches: list[list[int]] = []
    for _ in range(epochs):
        rows = dice.sample(range(len(lengths)), len(lengths))
        group = GROUPED_BATCHES * batch
        for start in range(0, len(rows), group):
            rows[start : start + group] = sorted(rows[start : start + group], key=lambda row: lengths[row])
        epoch = [rows[start : start + batch] for start in range(0, len(rows) - batch + 1, batch)]
        dice.shuffle(epoch)
        batches += epoch
    return batches


def linear_rates(peak: float, steps: int) -> list[float]:
    return [peak * (1 - step / steps) for step in range(steps)]


def loss_of(model: Callable[..., Any], ids: Tensor, mask: Tensor | None, targets: Tensor, *, precision: str) -> Tensor:
    """Cross-entropy with class indices, or KL divergence from teacher logits at temperature 1."""
    # cache_enabled=False: casts that the cache keeps must not outlive a captured graph.
    with torch.autocast(ids.device.type, torch.bfloat16, enabled=precision == "bfloat16", cache_enabled=False):
        logits = model(input_ids=ids, attention_mask=mask).logits
    logits = logits.float()
    if not targets.is_floating_point():
        return torch.nn.functional.cross_entropy(logits, targets)
    teacher = targets.log_softmax(-1)
    return torch.nn.functional.kl_div(logits.log_softmax(-1), teacher, reduction="batchmean", log_target=True)


def train_eager(
    model: Any, rows: Rows, batches: list[list[int]], rates: list[float], *, precision: str, warm_up: int = 0
) -> Timing:
    """One step after the other; batches are padded on the CPU and copied, as a data loader would."""
    device = next(model.parameters()).device
    optimizer = torch.optim.AdamW(model.parameters(), lr=rates[0], weight_decay=0.0, fused=True)
    losses: list[Tensor] = []
    _reset_peak(device)
    model.train()
    began = _now(device)
    for step, batch in enumerate(batches):
        if step == warm_up:
            began = _now(device)
        index = torch.tensor(batch)
        lengths = rows.lengths[index]
        ids = rows.ids[index, : int(lengths.max())]
        mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
        on_device = (part.to(device, non_blocking=True) for part in (ids, mask, rows.targets[index]))
        for group in optimizer.param_groups:
            group["lr"] = rates[step]
        losses.append(_update(model, optimizer, *on_device, precision=precision))
    step_s = (_now(device) - began) / max(len(batches) - warm_up, 1)
    return Timing(step_s, 0.0, torch.stack(losses).tolist(), _peak(device))


def _update(
    model: Any, optimizer: torch.optim.AdamW, ids: Tensor, mask: Tensor | None, targets: Tensor, *, precision: str
) -> Tensor:
    """Forward, loss, backward, clipping and AdamW. Returns: the loss, still on the device."""
    optimizer.zero_grad(set_to_none=True)
    loss = loss_of(model, ids, mask, targets, precision=precision)
    loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
    optimizer.step()
    return loss.detach()


class CapturedLoop:
    """The whole step as one CUDA graph for each width; rows, order, rates and losses stay on the GPU.

    A step costs the CPU one call: the graph itself reads which rows are next, and counts.
    """

    def __init__(self, model: Any, rows: Rows, batches: list[list[int]], rates: list[float], *, precision: str) -> None:
        device = next(model.parameters()).device
        self.model, self.rows, self.precision, self.device = model, rows.to(device), precision, device
        self.batches = batches
        self.order = torch.tensor(batches, device=device)
        self.rates = torch.tensor(rates, device=device)
        self.position = torch.zeros(1, dtype=torch.int64, device=device)
        self.losses = torch.zeros(len(batches), device=device)
        self.rate = torch.tensor(rates[0], device=device)
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=self.rate, weight_decay=0.0, fused=True, capturable=True
        )
        lengths = rows.lengths.tolist()
        longest = rows.ids.shape[1]
        self.widths = [min(_width(max(lengths[row] for row in batch)), longest) for batch in batches]

    def run(self, *, timed_from: int) -> Timing:
        """Trains over all batches; the steps from `timed_from` on are timed."""
        self.model.train()
        _reset_peak(self.device)
        began = _now(self.device)
        graphs = self._capture()
        captured = _now(self.device)
        timed = captured
        for step, width in enumerate(self.widths):
            if step == timed_from:
                timed = _now(self.device)
            graphs[width].replay()
        step_s = (_now(self.device) - timed) / (len(self.widths) - timed_from)
        return Timing(step_s, captured - began, self.losses.tolist(), _peak(self.device))

    def _capture(self) -> dict[int, torch.cuda.CUDAGraph]:
        weights = [parameter.detach().clone() for parameter in self.model.parameters()]
        graphs: dict[int, torch.cuda.CUDAGraph] = {}
        pool = None
        # The widest first, so that the narrower ones fit into its memory.
        for width in sorted(set(self.widths), reverse=True):
            self._warm_up(width, 1 if graphs else WARM_UP_STEPS)
            self.optimizer.zero_grad(set_to_none=True)  # the recording allocates its own
            graph = torch.cuda.CUDAGraph()
            # The backward pass has a thread of its own, in which CUDA may load a kernel meanwhile.
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                self._step(width)
            graphs[width] = graph
            pool = graph.pool()
        self._restore(weights)
        return graphs

    def _warm_up(self, width: int, steps: int) -> None:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(steps):
                self._step(width)
        torch.cuda.current_stream().wait_stream(stream)

    def _step(self, width: int) -> None:
        rows = self.rows
        # index_select, because indexing with a tensor of no dimensions would wait for the GPU.
        index = self.order.index_select(0, self.position).squeeze(0)
        ids = rows.ids.index_select(0, index)[:, :width]
        lengths = rows.lengths.index_select(0, index)
        # In the form that attention takes. With one number per token, transformers looks at the values in the warm-up
        # and not in the recording, and may then choose another kernel.
        mask = (torch.arange(width, device=self.device) < lengths[:, None])[:, None, None].expand(-1, 1, width, -1)
        self.rate.copy_(self.rates.index_select(0, self.position).squeeze(0))
        targets = rows.targets.index_select(0, index)
        loss = _update(self.model, self.optimizer, ids, mask, targets, precision=self.precision)
        self.losses.index_copy_(0, self.position, loss.view(1))
        self.position += 1

    def _restore(self, weights: list[Tensor]) -> None:
        """Undoes the steps of the warm-up in place, because graphs refer to memory."""
        with torch.no_grad():
            for parameter, weight in zip(self.model.parameters(), weights, strict=True):
                parameter.copy_(weight)
        for state in self.optimizer.state.values():
            for value in state.values():
                value.zero_()
        self.position.zero_()
        self.losses.zero_()


def _width(length: int) -> int:
    return next((width for width in WIDTHS if width >= length), length)


def train_on_device(
    model: Any, rows: Rows, batches: list[list[int]], rates: list[float], *, precision: str, compiled: str | None
) -> Timing:
    """Rows of equal length, all on the device and without padding, so without a mask. The first steps are not timed.

    Args:
        compiled: "layers": each layer by torch.compile, in a tenth of the time of "model": all in one; None: eager.
    """
    device = next(model.parameters()).device
    rows = rows.to(device)
    order = torch.tensor(batches, device=device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rates[0], weight_decay=0.0, fused=True)
    model.train()
    call = model
    if compiled == "layers":
        for layer in model.bert.encoder.layer:
            layer.compile(dynamic=False)
    elif compiled == "model":
        call = torch.compile(model, dynamic=False)
    losses: list[Tensor] = []
    warm_up = max(2, len(batches) // 6)
    _reset_peak(device)
    began = first = timed = _now(device)
    for step in range(len(batches)):
        if step == 1:
            first = _now(device)
        if step == warm_up:
            timed = _now(device)
        for group in optimizer.param_groups:
            group["lr"] = rates[step]
        index = order[step]
        ids, targets = rows.ids.index_select(0, index), rows.targets.index_select(0, index)
        losses.append(_update(call, optimizer, ids, None, targets, precision=precision))
    step_s = (_now(device) - timed) / (len(batches) - warm_up)
    return Timing(step_s, first - began, torch.stack(losses).tolist(), _peak(device))


@torch.inference_mode()
def teacher_logits(model: Any, rows: Rows, *, precision: str, tokens: int) -> tuple[Tensor, float]:
    """Logits of all rows [N, C] in batches of at most `tokens` padded tokens, and rows per second.

    The weights are cast once, and the rows are on the GPU before the clock starts.
    """
    device = next(model.parameters()).device
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    model = model.to(dtype).eval()
    order = rows.lengths.argsort(descending=True)
    lengths = rows.lengths[order].tolist()
    rows, order = rows.to(device), order.to(device)
    logits = torch.zeros(len(lengths), model.config.num_labels, device=device)
    for _ in range(2):  # the first pass warms up
        began = _now(device)
        start = 0
        while start < len(lengths):
            width = lengths[start]
            index = order[start : start + max(1, tokens // width)]
            ids = rows.ids.index_select(0, index)[:, :width]
            mask = (torch.arange(width, device=device) < rows.lengths.index_select(0, index)[:, None]).long()
            logits.index_copy_(0, index, model(input_ids=ids, attention_mask=mask).logits.float())
            start += len(index)
        elapsed_s = _now(device) - began
    return logits.cpu(), len(lengths) / elapsed_s


def _now(device: torch.device) -> float:
    """The clock, once the GPU has caught up."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()


def _peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
