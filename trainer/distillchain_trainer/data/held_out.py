"""Checks that splits are held out: refuses the same file twice and counts texts that several splits share.

Compares texts alone and knows no task type.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np

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
        if np.array_equal(first.distinct_texts(), second.distinct_texts()):
            raise DataInvalid(
                f"{FIELD}.{second.name}: {sources[second.name]} has the same texts as {FIELD}.{first.name} "
                f"({sources[first.name]}); a split must be held out, so name another file or split"
            )
    for first, second in combinations(splits, 2):
        # Case and white space do not count: a text that differs only in these is not new to the model either.
        shared = np.flatnonzero(np.isin(second.fingerprints, first.fingerprints))
        if len(shared):
            warnings.add(
                f"{FIELD}.{second.name}: {len(shared)} of {len(second)} {second.name} texts are also in {first.name}, "
                f"such as {second.place(int(shared[0]))}; metrics on them do not show how the model does on new texts"
            )


def warn_of_contradictions(split: Split, warnings: StageWarnings) -> None:
    """Warns if more than NOTABLE_SHARE of the rows have a text that the split also has with another target."""
    fingerprints, targets = split.fingerprints, np.asarray(split.targets)
    # Equal texts become neighbours. Stable, so that the rows in the message are the first ones of the file.
    order = np.argsort(fingerprints, kind="stable")
    same_text = np.diff(fingerprints[order]) == 0
    contradicts = np.flatnonzero(same_text & (targets[order][1:] != targets[order][:-1]))
    count = int(np.isin(fingerprints, fingerprints[order][contradicts]).sum())
    if count <= NOTABLE_SHARE * len(split):
        return
    first, second = order[contradicts[0]], order[contradicts[0] + 1]
    warnings.add(
        f"{FIELD}.{split.name}: {count} of {len(split)} rows have a text that is also there with another label, "
        f"such as {split.place(int(first))} and {split.place(int(second))}; correct their labels or remove them"
    )
