"""The order of the training rows, over many sizes."""

from __future__ import annotations

import random

import numpy as np
import pytest

from distillchain_trainer.engine.training.data_order import epoch_batches, steps_per_epoch

pytestmark = pytest.mark.models  # imports torch

SIZES = [(1, 1), (1, 8), (7, 8), (8, 8), (9, 8), (31, 8), (97, 32), (105, 32), (1000, 7), (3200, 32), (10_001, 32)]


def lengths(rows: int) -> list[int]:
    dice = random.Random(rows)
    return [dice.randint(3, 60) for _ in range(rows)]


@pytest.mark.parametrize("rows, batch_size", SIZES)
def test_every_row_is_in_one_batch_and_all_batches_but_one_are_full(rows: int, batch_size: int):
    batches = epoch_batches(lengths(rows), batch_size, seed=1, epoch=0)

    assert sorted(row for batch in batches for row in batch) == list(range(rows))
    assert len(batches) == steps_per_epoch(rows, batch_size)
    short = [len(batch) for batch in batches if len(batch) != batch_size]
    assert short == ([rows % batch_size] if rows % batch_size else [])


@pytest.mark.parametrize("rows, batch_size", [size for size in SIZES if size[0] > 90])
def test_the_order_depends_on_seed_and_epoch_alone(rows: int, batch_size: int):
    def order(seed: int, epoch: int) -> list[list[int]]:
        return list(epoch_batches(lengths(rows), batch_size, seed=seed, epoch=epoch))

    first = order(1, 0)

    assert order(1, 0) == first
    assert order(1, 1) != first
    assert order(2, 0) != first


def test_an_epoch_is_continued_where_it_was_left():
    batches = epoch_batches(lengths(97), 8, seed=1, epoch=0)

    assert [list(batches)[position:] for position in range(14)] == [list(batches[position:]) for position in range(14)]
    assert batches[5] == list(batches)[5]


def test_a_batch_holds_rows_of_about_equal_length():
    size = lengths(3200)

    batches = epoch_batches(size, 32, seed=5, epoch=0)

    spread = sorted(max(size[row] for row in batch) - min(size[row] for row in batch) for batch in batches)
    assert spread[len(spread) // 2] <= 3, "random batches spread over more than 50"


@pytest.mark.parametrize("rows", [1600, 3200, 10_001])
@pytest.mark.parametrize("epoch", range(3))
def test_batches_do_not_run_from_long_to_short(rows: int, epoch: int):
    """Within a group of 50 batches the order was by length: a short training ended on short texts only."""
    size = lengths(rows)
    means = [np.mean([size[row] for row in batch]) for batch in epoch_batches(size, 32, seed=0, epoch=epoch)]
    group = means[: min(50, len(means))]

    falling = np.corrcoef(np.arange(len(group)), group)[0, 1]

    assert abs(falling) < 0.5, f"correlation of position and length: {falling:.2f}"


@pytest.mark.parametrize("rows, batch_size", SIZES)
@pytest.mark.parametrize("more", [1, 3, 250])
def test_rows_are_repeated_equally_often_up_to_the_rows_of_an_epoch(rows: int, batch_size: int, more: int):
    """Of a control that learns from labels alone, beside a student that learns from unlabelled text too."""
    counts = np.zeros(rows, dtype=int)
    epochs = 3
    for epoch in range(epochs):
        batches = list(epoch_batches(lengths(rows), batch_size, seed=1, epoch=epoch, rows_per_epoch=rows + more))
        assert len(batches) == steps_per_epoch(rows + more, batch_size)
        found = [row for batch in batches for row in batch]
        assert len(found) == rows + more
        counts += np.bincount(found, minlength=rows)

    assert counts.sum() == epochs * (rows + more)
    assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize("rows, rows_per_epoch", [(100, 10_000), (200, 20_001), (1000, 20_000), (97, 150)])
def test_a_batch_holds_no_row_twice_while_others_wait(rows: int, rows_per_epoch: int):
    """Copies of a row are of one length, and sorting put them side by side: 14 % of a batch were different rows."""
    size = lengths(rows)
    batches = list(epoch_batches(size, 32, seed=1, epoch=0, rows_per_epoch=rows_per_epoch))

    twice = [len(batch) - len(set(batch)) for batch in batches]

    # Only where one pass over the rows ends and the next one begins within a batch.
    assert sum(count > 0 for count in twice) <= rows_per_epoch / rows
    assert sum(twice) <= 0.01 * rows_per_epoch
    assert max(len({size[row] for row in batch}) for batch in batches) < 32, "of about equal length"


def test_rows_that_are_not_repeated_keep_their_order():
    """Committed students were trained in it."""
    plain = list(epoch_batches(lengths(97), 8, seed=1, epoch=2))
    assert list(epoch_batches(lengths(97), 8, seed=1, epoch=2, rows_per_epoch=97)) == plain


def test_the_rows_of_a_late_epoch_are_those_of_whole_numbers():
    batches = epoch_batches(lengths(1000), 32, seed=0, epoch=1 << 19, rows_per_epoch=100_000)
    assert {row for batch in batches for row in batch} == set(range(1000))
