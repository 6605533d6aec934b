"""Token ids of the rows of a split, and the items of each row: the tokens for which a model gives an output.

A sequence task has one output per row and no items. TokenClassification has an item per word, CausalLM one per
predicted token. Knows no tokenizer and no task.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distillchain_trainer.engine.device.transfer import row_numbers

CUT_OFF = -1
"""Position of an item whose token was cut off by truncation."""

Rows = Sequence[int] | NDArray[np.int64]


@dataclass(frozen=True)
class Encoded:
    """Token ids of the rows of one split, one row after the other without padding.

    Attributes:
        ids: int32 [tokens]; row i has `ids[starts[i]:starts[i + 1]]`.
        starts: int64 [rows + 1].
        kinds: token types (first or second text), int32 [tokens], or None if the model has none.
        most_tokens: padded tokens of one forward pass at most, for a task whose outputs need much memory; None: as many
            as the device computes well.
        positions: for each item the index of its token within its row, int32 [items]; CUT_OFF for an item that was cut
            off by truncation. None: the task has one output per row.
        item_starts: int64 [rows + 1]; row i has the items `item_starts[i]` to `item_starts[i + 1]`.
        item_ids: a token id for each item, int32 [items]; for CausalLM the token that is to be predicted.
        kept: the items that were not cut off, int64 [kept items]; None: all of them.
        kept_starts: as `item_starts`, for `kept`.
    """

    ids: Tensor
    starts: Tensor
    kinds: Tensor | None
    pad_id: int
    pad_left: bool
    most_tokens: int | None = None
    positions: Tensor | None = None
    item_starts: Tensor | None = None
    item_ids: Tensor | None = None
    kept: Tensor | None = None
    kept_starts: Tensor | None = None

    @classmethod
    def of(
        cls,
        ids: Sequence[NDArray[np.int32]],
        kinds: Sequence[NDArray[np.int32]] | None = None,
        *,
        pad_id: int,
        pad_left: bool = False,
        positions: Sequence[NDArray[np.int32]] | None = None,
        item_ids: Sequence[NDArray[np.int32]] | None = None,
    ) -> Encoded:
        """From one array per row. Raises: ValueError for a row with more items than tokens."""
        encoded = cls(_joined(ids), _starts(ids), None if kinds is None else _joined(kinds), pad_id, pad_left)
        if positions is None:
            return encoded
        return encoded.with_items(
            _joined(positions), _starts(positions), item_ids=None if item_ids is None else _joined(item_ids)
        )

    def with_items(self, positions: Tensor, item_starts: Tensor, *, item_ids: Tensor | None = None) -> Encoded:
        """The same rows with items. Raises: ValueError for a row with more items than tokens."""
        is_kept = positions != CUT_OFF
        kept, kept_starts = None, item_starts
        if not is_kept.all():
            kept = is_kept.nonzero().flatten()
            kept_starts = torch.searchsorted(kept, item_starts)
        # Items are padded to the width of the tokens, so that a batch has a single width.
        if (kept_starts.diff() > self.starts.diff()).any():
            raise ValueError("a row has more items than tokens")
        return replace(
            self, positions=positions, item_starts=item_starts, item_ids=item_ids, kept=kept, kept_starts=kept_starts
        )

    def without_items(self, cut_off: NDArray[np.bool_]) -> Encoded:
        """The same rows, in which these items [items] count as cut off too."""
        assert self.positions is not None
        assert self.item_starts is not None
        others = cut_off & (self.positions != CUT_OFF).numpy()
        if not others.any():  # the tokenizers of teacher and student are one, so nothing has to be copied
            return self
        positions = torch.where(torch.from_numpy(cut_off), CUT_OFF, self.positions)
        return self.with_items(positions, self.item_starts, item_ids=self.item_ids)

    def __len__(self) -> int:
        return len(self.starts) - 1

    @functools.cached_property
    def lengths(self) -> NDArray[np.int32]:
        """Tokens of each row."""
        return _sizes(self.starts)

    def width_of(self, rows: Rows) -> int:
        """Tokens of the longest of some rows."""
        return int(self.lengths[np.asarray(rows, dtype=np.int64)].max())

    def longest_first(self, rows: Rows | None = None) -> NDArray[np.int64]:
        """Some rows, or all, in the order of their lengths; rows of the same length stay in order."""
        picked = np.arange(len(self)) if rows is None else np.asarray(rows, dtype=np.int64)
        order: NDArray[np.int64] = picked[np.argsort(-self.lengths[picked], kind="stable")]
        return order

    @functools.cached_property
    def weights(self) -> NDArray[np.int32] | None:
        """How much each row weighs in a mean over outputs: its items that were not cut off; None: all rows the same."""
        return None if self.kept_starts is None else _sizes(self.kept_starts)

    @property
    def item_counts(self) -> NDArray[np.int32] | None:
        """Items of each row, with those that were cut off; None: the task has one output per row."""
        return None if self.item_starts is None else _sizes(self.item_starts)

    @property
    def answered(self) -> NDArray[np.bool_] | None:
        """Which items were not cut off, [items]; None: all outputs of all rows."""
        if self.positions is None or self.kept is None:
            return None
        return (self.positions != CUT_OFF).cpu().numpy()

    @property
    def output_count(self) -> int:
        """Outputs of all rows, with those of items that were cut off."""
        return len(self) if self.positions is None else len(self.positions)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self._tensors.values() if tensor is not None)

    @property
    def _tensors(self) -> dict[str, Tensor | None]:
        names = ("ids", "starts", "kinds", "positions", "item_starts", "item_ids", "kept", "kept_starts")
        return {name: getattr(self, name) for name in names}

    def to(self, device: torch.device) -> Encoded:
        """The same rows on another device."""
        if self.ids.device == device:
            return self
        moved = {name: None if tensor is None else tensor.to(device) for name, tensor in self._tensors.items()}
        settings = {"pad_id": self.pad_id, "pad_left": self.pad_left, "most_tokens": self.most_tokens}
        return Encoded(**moved, **settings)  # type: ignore[arg-type]  # ids, starts: never None

    def batch(self, rows: Sequence[int] | Tensor, *, width: int | None = None) -> dict[str, Tensor]:
        """Inputs of a model for some rows, [rows, width], on the device of the ids.

        Args:
            rows: as a tensor, they and the results stay on the device: nothing waits for a GPU.
            width: tokens of a padded row; needed with a tensor, otherwise by default the longest row.
        """
        rows, width = self._picked(rows, width)
        first = self.starts[rows].unsqueeze(1)
        sizes = self.starts[rows + 1].unsqueeze(1) - first
        column = torch.arange(width, device=self.ids.device).expand(len(rows), width)
        if self.pad_left:
            column = column - (width - sizes)
        inside = (column >= 0) & (column < sizes)
        # Clamped, because the places of padding may lie outside of all rows.
        place = (first + column).clamp(0, len(self.ids) - 1)
        # int64, as transformers' tokenizers give it. The rows are kept as int32, which takes half the memory.
        ids = torch.where(inside, self.ids[place], self.pad_id).long()
        inputs = {"input_ids": ids, "attention_mask": inside.long()}
        return inputs if self.kinds is None else inputs | {"token_type_ids": (self.kinds[place] * inside).long()}

    def items(self, rows: Sequence[int] | Tensor, *, width: int | None = None) -> dict[str, Tensor]:
        """The items of some rows that were not cut off, [rows, width]; {} for a task with one output per row.

        They are no inputs of the model. Where a row has fewer items, `positions` has its first token.

        Args: as for `batch`.
        Returns: `positions`: int64, the index of the token in the padded row. `inside`: bool, whether it is an item.
            `item_ids`: int64, where the items have token ids.
        """
        if self.positions is None:
            return {}
        rows, width = self._picked(rows, width)
        place, inside = self.item_places(rows, width=width)
        positions = torch.where(inside, at_places(self.positions, place).long(), 0)
        if self.pad_left:
            positions = positions + (width - (self.starts[rows + 1] - self.starts[rows])).unsqueeze(1)
        found = {"positions": positions, "inside": inside}
        return found if self.item_ids is None else found | {"item_ids": at_places(self.item_ids, place).long()}

    def item_places(self, rows: Tensor, *, width: int) -> tuple[Tensor, Tensor]:
        """Indices of the items of some rows among all items, int64 [rows, width], and which of them are no padding."""
        assert self.kept_starts is not None
        assert self.positions is not None
        first = self.kept_starts[rows].unsqueeze(1)
        column = torch.arange(width, device=self.ids.device).expand(len(rows), width)
        inside = column < self.kept_starts[rows + 1].unsqueeze(1) - first
        kept = self.positions if self.kept is None else self.kept
        place = (first + column).clamp(0, max(len(kept) - 1, 0))
        return (place if self.kept is None else at_places(self.kept, place)), inside

    def without_padding(self, outputs: Tensor, rows: Sequence[int], *, width: int) -> Tensor:
        """Outputs of some rows in one line: [rows, width, ...] becomes [items that were not cut off, ...].

        Outputs [rows, ...] of a task with one output per row stay as they are.
        """
        if self.weights is None:
            return outputs
        # Found on the host: a mask on a GPU would be waited for, because the number of its items is not known.
        inside = np.flatnonzero(np.arange(width) < self.weights[np.asarray(rows, dtype=np.int64), None])
        return outputs.flatten(0, 1)[row_numbers(inside.tolist(), outputs.device)]

    def output_places(self, rows: Rows) -> NDArray[np.int64]:
        """Where the outputs of some rows, without padding, belong among those of all rows."""
        rows = np.asarray(rows, dtype=np.int64)
        if self.kept_starts is None or self.weights is None:
            return rows
        places = ranges(self.kept_starts.numpy()[rows], self.weights[rows])
        return places if self.kept is None else self.kept.numpy()[places]

    def _picked(self, rows: Sequence[int] | Tensor, width: int | None) -> tuple[Tensor, int]:
        if not isinstance(rows, Tensor):
            width = width or self.width_of(rows)
            rows = row_numbers(rows, self.ids.device)
        assert width is not None
        return rows, width


def at_places(values: Tensor, place: Tensor) -> Tensor:
    """`values[place]`; zeros if there are no values, as in rows without any item."""
    return values[place] if len(values) else values.new_zeros((*place.shape, *values.shape[1:]))


def ranges(starts: NDArray[np.int64], sizes: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
    """The numbers from starts[i] to starts[i] + sizes[i], for one i after the other."""
    ends = np.cumsum(sizes, dtype=np.int64)
    found: NDArray[np.int64] = np.arange(sizes.sum()) + np.repeat(starts - (ends - sizes), sizes)
    return found


def _sizes(starts: Tensor) -> NDArray[np.int32]:
    """Differences in four bytes each: no row has 2**31 tokens."""
    return np.diff(starts.cpu().numpy()).astype(np.int32)


def _starts(rows: Sequence[NDArray[np.int32]]) -> Tensor:
    return torch.from_numpy(np.concatenate([[0], np.cumsum([len(row) for row in rows], dtype=np.int64)]))


def _joined(rows: Sequence[NDArray[np.int32]]) -> Tensor:
    return torch.from_numpy(np.concatenate(rows) if rows else np.zeros(0, dtype=np.int32))
