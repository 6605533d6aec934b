"""Rows with items: none, one or many, some of them cut off, in batches padded on either side; and a small tagger."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distillchain_trainer.engine.encoding.encoded import CUT_OFF, Encoded

CLASSES = 3
WORDS = 40


@dataclass(frozen=True)
class ItemRows:
    """Rows as lists, for expectations, and encoded."""

    ids: list[NDArray[np.int32]]
    positions: list[NDArray[np.int32]]
    encoded: Encoded

    @property
    def item_counts(self) -> list[int]:
        return [len(row) for row in self.positions]


def item_rows(
    count: int, *, seed: int = 0, pad_left: bool = False, cut_off: bool = True, texts: list[int] | None = None
) -> ItemRows:
    """Random rows of 2 to 11 tokens.

    Args:
        cut_off: the last or the first items of some rows are cut off.
        texts: a seed for each row; equal numbers give equal rows.
    """
    ids, positions = [], []
    for text in range(count) if texts is None else texts:
        dice = np.random.default_rng([seed, text])
        size = int(dice.integers(2, 12))
        ids.append(dice.integers(1, WORDS, size).astype(np.int32))
        # Without gaps in the order, but not every token is an item, and rows without items are among them.
        found = np.flatnonzero(dice.random(size) < dice.choice([0.0, 0.3, 1.0])).astype(np.int32)
        if text == 0:  # one row of a small set has items
            found = np.array([1], dtype=np.int32)
        gone = np.full(int(dice.integers(0, 20)) if cut_off and text % 3 == 1 else 0, CUT_OFF, dtype=np.int32)
        positions.append(np.concatenate([found, gone] if text % 2 else [gone, found]))
    item_ids = [np.arange(len(row), dtype=np.int32) + 7 for row in positions]
    encoded = Encoded.of(ids, positions=positions, item_ids=item_ids, pad_id=0, pad_left=pad_left)
    return ItemRows(ids, positions, encoded)


class Tagger(torch.nn.Module):
    """Logits for every token, from the token and the mean of its row; padding gives NaN, as attention may."""

    def __init__(self, *, width: int = 6) -> None:
        super().__init__()
        self.words = torch.nn.Embedding(WORDS, width)
        self.head = torch.nn.Linear(width, CLASSES)
        self.rows = 0

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        self.rows += len(input_ids)
        mask = attention_mask.unsqueeze(-1)
        words = self.words(input_ids) * mask
        mean = words.sum(1, keepdim=True) / mask.sum(1, keepdim=True)
        logits = self.head(words + mean).masked_fill(mask == 0, float("nan"))
        return SimpleNamespace(logits=logits)


def a_tagger(seed: int = 0) -> Tagger:
    torch.manual_seed(seed)
    return Tagger()


def item_outputs(answer: Any, items: dict[str, Tensor]) -> Tensor:
    """Logits [rows, width, classes] of the items, as a task with items picks them."""
    places = items["positions"].unsqueeze(-1).expand(-1, -1, CLASSES)
    logits: Tensor = answer.logits.gather(1, places)
    return logits


def expected_outputs(model: Tagger, rows: ItemRows) -> Tensor:
    """One row at a time and one item after the other: [items, classes]; zeros for items that were cut off."""
    found = []
    for ids, positions in zip(rows.ids, rows.positions, strict=True):
        tokens = torch.from_numpy(ids).long().unsqueeze(0)
        logits = model(tokens, torch.ones_like(tokens)).logits[0]
        found += [torch.zeros(CLASSES) if place == CUT_OFF else logits[place] for place in positions]
    return torch.stack(found)
