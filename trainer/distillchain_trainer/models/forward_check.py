"""Two short forward passes on the CPU that show whether a model does what training and measuring need of it.

A model type may fail only when it computes: it needs images, boxes or an end token, or a package that is not installed.
And the answer for a text must not depend on the texts beside it in a batch, which padding on the wrong side causes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from distillchain_trainer.errors import first_line, translate_unforeseen
from distillchain_trainer.models.loading import seeded

Rows: TypeAlias = Sequence[dict[str, Sequence[int]]]

# Measured with random weights of 90 model types in float32: 2e-6 at most where padding has no effect, 2e-3 at least
# where it has.
TOLERANCE = 1e-3
# They mix tokens without regard to the attention mask, so that padding changes their answers on either side.
MIXES_PADDING = ("convbert", "fnet", "nystromformer", "yoso")


class ForwardFailed(ValueError):
    """A model cannot be used. The message continues a sentence whose subject is the model."""


def find_padding_side(
    model: Any,
    rows: Rows,
    *,
    pad_id: int,
    outputs_of: Callable[[Any], Tensor],
    shape: tuple[int, ...],
    per_token: bool = False,
) -> str | None:
    """The side to pad on so that each row gets the answer that it gets alone: right where both do; None if neither.

    Args:
        rows: inputs of a short and a long row, such as `input_ids`; not yet padded.
        pad_id: fills `input_ids`; other inputs are filled with 0.
        outputs_of: the outputs [rows, ...] from what the model returns.
        shape: of the outputs of one row, or of one token.
        per_token: the outputs are [rows, tokens, ...]; those of padding are not compared.
    Raises: ForwardFailed where the model fails, or returns outputs of another shape or that are not finite.
    """

    def answers(some: Rows, side: str) -> list[Tensor]:
        longest = max(len(row["input_ids"]) for row in some)
        outputs = _outputs(model, some, pad_id, side, outputs_of, (longest, *shape) if per_token else shape)
        if not per_token:
            return list(outputs)
        lengths = [len(row["input_ids"]) for row in some]
        return [
            row[:length] if side == "right" else row[longest - length :]
            for row, length in zip(outputs, lengths, strict=True)
        ]

    with _at_rest(model):
        alone = [answers([row], "right")[0] for row in rows]
        for side in ("right", "left"):  # right first: tokens after the last one cannot change a decoder's answer
            together = answers(rows, side)
            if all(_alike(row, single) for row, single in zip(together, alone, strict=True)):
                return side
    return None


def check_training(model: Any, rows: Rows, *, pad_id: int, side: str) -> None:
    """That a forward pass in training mode works: some models then have further conditions. Raises: ForwardFailed."""
    with _at_rest(model):
        model.train()
        _run(model, rows, pad_id, side)


def _outputs(
    model: Any,
    rows: Rows,
    pad_id: int,
    side: str,
    outputs_of: Callable[[Any], Tensor],
    shape: tuple[int, ...],
) -> Tensor:
    answer = _run(model, rows, pad_id, side)
    try:
        outputs = outputs_of(answer).float()
    except Exception as error:
        raise ForwardFailed(f"returns no outputs of the task ({first_line(error)})") from error
    if outputs.shape != (len(rows), *shape):
        raise ForwardFailed(f"returns outputs of shape {list(outputs.shape)}, expected {[len(rows), *shape]}")
    if not torch.isfinite(outputs).all():
        raise ForwardFailed("returns values that are not numbers (NaN or infinite)")
    return outputs


def _run(model: Any, rows: Rows, pad_id: int, side: str) -> Any:
    try:
        return model(**_batch(rows, pad_id, side))
    except Exception as error:  # each architecture fails in its own way
        known = translate_unforeseen(error)
        if known is not None:
            raise known from error
        raise ForwardFailed(f"fails in a forward pass ({type(error).__name__}: {first_line(error)})") from error


def _batch(rows: Rows, pad_id: int, side: str) -> dict[str, Tensor]:
    longest = max(len(row["input_ids"]) for row in rows)

    def padded(values: Sequence[int], fill: int) -> list[int]:
        more = [fill] * (longest - len(values))
        return [*values, *more] if side == "right" else [*more, *values]

    batch = {
        name: torch.tensor(
            [padded(np.asarray(row[name]).tolist(), pad_id if name == "input_ids" else 0) for row in rows]
        )
        for name in rows[0]
    }
    return batch | {"attention_mask": torch.tensor([padded([1] * len(row["input_ids"]), 0) for row in rows])}


def _alike(one: Tensor, other: Tensor) -> bool:
    # Relative to the largest output. The constant is for outputs that are all zero.
    scale = torch.maximum(one.abs().max(), other.abs().max())
    return bool((one - other).abs().max() <= TOLERANCE * scale + 1e-7)


@contextmanager
def _at_rest(model: Any) -> Iterator[None]:
    """Within, the model is in evaluation mode and nothing that is done with it lasts."""
    training, base = model.training, model.base_model
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    attention = getattr(base, "attention_type", None)
    model.eval()
    try:
        with torch.no_grad(), seeded(0):
            yield
    finally:
        for name, buffer in model.named_buffers():  # I-BERT, for one, notes the range of values that it sees
            if name in buffers and buffers[name].shape == buffer.shape:
                buffer.copy_(buffers[name])
        if attention is not None and base.attention_type != attention:  # BigBird changes it for good at a short text
            base.set_attention_type(attention)
        model.train(training)
