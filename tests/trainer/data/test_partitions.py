"""Rows are compared in groups of bounded size, with the result of comparing all at once."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from distillchain_trainer.data import held_out, partitions
from distillchain_trainer.data.held_out import check_held_out, warn_of_contradictions
from distillchain_trainer.data.split import Split, key_of
from distillchain_trainer.engine.encoding.distinct_texts import DistinctTexts
from distillchain_trainer.errors import DataInvalid
from distillchain_trainer.stage_warnings import StageWarnings


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups of about seven rows, found in blocks of five."""
    monkeypatch.setattr(partitions, "PARTITION_ROWS", 7)
    monkeypatch.setattr(partitions, "BLOCK_ROWS", 5)
    monkeypatch.setattr(held_out, "BLOCK_ROWS", 5)


def a_split(name: str, numbers: list[int], targets: list[int] | None = None) -> Split:
    texts = [(f"text {number}",) for number in numbers]
    return Split(name, texts, targets or [0] * len(texts), [key_of(text) for text in texts])


@pytest.mark.parametrize("rows", [0, 1, 6, 50, 1000])
@pytest.mark.usefixtures("small")
def test_each_row_is_in_one_group_with_its_equals(rows: int):
    dice = np.random.default_rng(rows)
    numbers = np.repeat(dice.integers(0, 2**64, rows, dtype=np.uint64), 2)[:rows]

    groups = list(partitions.partitions(lambda start, stop: numbers[start:stop], rows))

    assert sorted(row for group in groups for row in group.tolist()) == list(range(rows))
    found = [set(numbers[group].tolist()) for group in groups]
    assert sum(map(len, found)) == len(set(numbers.tolist()))
    assert [number for part in found for number in sorted(part)] == sorted(set(numbers.tolist()))
    assert max(map(len, groups)) < 40


@pytest.mark.parametrize("in_files", [False, True])
def test_distinct_texts_are_the_same_in_groups_and_in_files(
    tmp_path: Path, request: pytest.FixtureRequest, in_files: bool
):
    digests = [hashlib.sha256(b"%d" % (row % 300)).digest() for row in range(1000)]
    keys = np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(-1, 32)
    items = (np.arange(1000) % 300 % 4).astype(np.int32)
    whole = DistinctTexts.of(keys, items)

    request.getfixturevalue("small")
    found = DistinctTexts.of(keys, items, folder=tmp_path if in_files else None)

    for one, other in ((found.place, whole.place), (found.first_rows, whole.first_rows), (found.starts, whole.starts)):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(found.find(keys), whole.place)
    assert len(found) == 300


@pytest.mark.usefixtures("small")
def test_contradictions_are_counted_over_all_rows():
    numbers = [*range(100), *range(0, 100, 10), 3]
    targets = [0] * 100 + [1] * 10 + [0]

    warn_of_contradictions(a_split("train", numbers, targets), warnings := StageWarnings())

    (sentence,) = warnings.sentences
    assert "20 of 111 rows have a text that is also there with another label" in sentence


@pytest.mark.usefixtures("small")
def test_splits_are_compared_in_blocks():
    train, validation = a_split("train", list(range(40))), a_split("validation", [90, 38, 91, 0, 38])
    sources = {"train": "a.tsv", "validation": "b.tsv"}

    check_held_out([train, validation], sources, warnings := StageWarnings())

    (sentence,) = warnings.sentences
    assert "3 of 5 validation texts are also in train, such as validation, row 2" in sentence
    with pytest.raises(DataInvalid, match=r"b\.tsv has the same texts as"):
        check_held_out([train, a_split("validation", [*range(39, -1, -1), 7])], sources, warnings)
