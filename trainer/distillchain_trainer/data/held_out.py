"""Checks that splits are held out: refuses the same file twice and counts texts that several splits share.

Compares texts alone and knows no task type.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from distillchain_trainer.data.partitions import BLOCK_ROWS, partitions
from distillchain_trainer.data.split import Split
from distillchain_trainer.errors import DataInvalid
from distillchain_trainer.stage_warnings import StageWarnings

FIELD = "spec.task.dataset.splits"

# Public data sets have a few rows of the same text with different labels (SST-2: 10 of 67,349). They cost nothing.
NOTABLE_SHARE = 0.001


def check_held_out(splits: Sequence[Split], sources: Mapping[str, str], warnings: StageWarnings) -> None:
    """Compares each split with those after it.

    Args:
        splits: in the order train, validation, test.
        sources: file or hub split of each split, for messages.
    Raises: DataInvalid where two splits consist of the same texts: the same file under two names, a link or a copy.
    """
    # All refusals first: warnings about overlap are of no use if a split is refused.
    for first, second in combinations(splits, 2):
        # In any order and without repetitions: a shuffled copy of a file is not held out either.
        if _have_same_texts(first, second):
            raise DataInvalid(
                f"{FIELD}.{second.name}: {sources[second.name]} has the same texts as {FIELD}.{first.name} "
                f"({sources[first.name]}); a split must be held out, so name another file or split"
            )
    for first, second in combinations(splits, 2):
        # A text that differs only in what fingerprints ignore is not new to the model either.
        shared = _rows_also_in(first, second)
        if len(shared):
            warnings.add(
                f"{FIELD}.{second.name}: {len(shared)} of {len(second)} {second.name} texts are also in {first.name}, "
                f"such as {second.place(int(shared[0]))}; metrics on them do not show how the model does on new texts"
            )


def _have_same_texts(first: Split, second: Split) -> bool:
    """Whether two splits consist of the same texts. Memory grows with the smaller one alone."""
    larger, smaller = sorted((first, second), key=len, reverse=True)
    known = np.unique(smaller.text_numbers(0, len(smaller)))
    seen = np.zeros(len(known), dtype=bool)
    for start in range(0, len(larger), BLOCK_ROWS):
        numbers = larger.text_numbers(start, start + BLOCK_ROWS)
        places = np.searchsorted(known, numbers).clip(max=len(known) - 1)
        if not np.array_equal(known[places], numbers):
            return False
        seen[places] = True
    return bool(seen.all())


def _rows_also_in(first: Split, second: Split) -> NDArray[np.int64]:
    """The rows of the second split whose text is in the first. Memory grows with the second one alone."""
    known, place = np.unique(second.fingerprints, return_inverse=True)
    seen = np.zeros(len(known), dtype=bool)
    for start in range(0, len(first), BLOCK_ROWS):
        fingerprints = first.fingerprints[start : start + BLOCK_ROWS]
        places = np.searchsorted(known, fingerprints).clip(max=len(known) - 1)
        seen[places[known[places] == fingerprints]] = True
    return np.flatnonzero(seen[place])


def warn_of_contradictions(split: Split, warnings: StageWarnings) -> None:
    """Warns if more than NOTABLE_SHARE of the rows have a text that the split also has with another target."""
    fingerprints, all_targets = split.fingerprints, np.asarray(split.targets)
    count, example = 0, (0, 0)
    for rows in partitions(lambda start, stop: fingerprints[start:stop].view(np.uint64), len(split)):
        # Equal texts become neighbours. Stable, so that the rows in the message are the first ones of the file.
        rows = rows[np.argsort(fingerprints[rows], kind="stable")]
        texts, targets = fingerprints[rows], all_targets[rows]
        contradicts = np.flatnonzero((texts[1:] == texts[:-1]) & (targets[1:] != targets[:-1]))
        if len(contradicts) and not count:
            example = (int(rows[contradicts[0]]), int(rows[contradicts[0] + 1]))
        count += int(np.isin(texts, texts[contradicts]).sum())
    if count <= NOTABLE_SHARE * len(split):
        return
    first, second = example
    warnings.add(
        f"{FIELD}.{split.name}: {count} of {len(split)} rows have a text that is also there with another label, "
        f"such as {split.place(first)} and {split.place(second)}; correct their labels or remove them"
    )
