"""Token ids in files: the same as in memory, written once for all processes of a node."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch

from distillchain_trainer.data.array_file import ArrayFile, map_array, shared_array
from distillchain_trainer.engine.encoding.encoded import CUT_OFF, Encoded
from distillchain_trainer.engine.encoding.encoded_files import Lengths, encode_in_files, encode_in_memory
from distillchain_trainer.engine.encoding.tokenizing import Tokens
from distillchain_trainer.errors import StopRequested

pytestmark = pytest.mark.models


def blocks(sizes: list[int], *, kinds: bool, items: bool, cut_off: bool) -> Iterator[Tokens]:
    """Random rows in blocks of these sizes."""
    dice = np.random.default_rng(len(sizes))
    for size in sizes:
        ids = [dice.integers(1, 99, dice.integers(1, 9)).astype(np.int32) for _ in range(size)]
        positions = [np.flatnonzero(dice.random(len(row)) < 0.6).astype(np.int32) for row in ids]
        if cut_off:
            positions = [np.append(row, [CUT_OFF] * int(dice.integers(0, 3))).astype(np.int32) for row in positions]
        yield Tokens(
            ids,
            [row % 2 for row in ids] if kinds else [],
            [len(row) + int(dice.integers(0, 4)) for row in ids],
            positions if items else None,
            [row + 5 for row in positions] if items else None,
        )


def write(folder: Path, rows: Iterator[Tokens], lengths: Lengths | None = None) -> Encoded:
    return encode_in_files(folder, rows, lengths or Lengths(8), pad_id=3, pad_left=True, check=lambda: None)


@pytest.mark.parametrize("sizes", [[1], [3, 3, 1], [50, 50, 17]])
@pytest.mark.parametrize("kinds, items, cut_off", [(False, False, False), (True, True, False), (False, True, True)])
def test_files_hold_what_memory_would(tmp_path: Path, sizes: list[int], kinds: bool, items: bool, cut_off: bool):
    in_files, in_memory = Lengths(8), Lengths(8)
    rows = [blocks(sizes, kinds=kinds, items=items, cut_off=cut_off) for _ in range(2)]

    mapped = write(tmp_path / "a", rows[0], in_files)

    whole = encode_in_memory(rows[1], in_memory, pad_id=3, pad_left=True)
    for field in fields(Encoded):
        one, other = getattr(mapped, field.name), getattr(whole, field.name)
        assert torch.equal(one, other) if isinstance(other, torch.Tensor) else one == other, field.name
    assert in_files == in_memory


def never() -> Iterator[Tokens]:
    raise AssertionError("the rows are encoded already")
    yield


def test_rows_that_another_process_has_encoded_are_not_encoded_again(tmp_path: Path):
    lengths = Lengths(4)
    first = write(tmp_path / "a", blocks([5, 2], kinds=True, items=True, cut_off=True), lengths)
    counted = Lengths(4)

    second = write(tmp_path / "a", never(), counted)

    assert torch.equal(first.ids, second.ids)
    assert counted == lengths, "every process knows how many rows were truncated"


def test_files_of_an_attempt_that_was_killed_are_written_again(tmp_path: Path):
    write(tmp_path / "a", blocks([9, 9], kinds=True, items=True, cut_off=True))
    (tmp_path / "a/done.json").unlink()

    found = write(tmp_path / "a", blocks([4], kinds=False, items=False, cut_off=False))

    assert (len(found), found.kinds, found.positions, found.kept) == (4, None, None, None)


def test_who_waits_for_another_process_can_be_stopped(tmp_path: Path):
    def stop() -> None:
        raise StopRequested

    (tmp_path / "a").mkdir()
    with (tmp_path / "a/lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(StopRequested):
            encode_in_files(tmp_path / "a", never(), Lengths(4), pad_id=0, pad_left=False, check=stop)


@pytest.mark.parametrize("inner", [(), (3,), (2, 2)])
@pytest.mark.parametrize("sizes", [[], [0], [1], [5, 0, 7]])
def test_an_array_in_a_file_has_what_was_appended(tmp_path: Path, sizes: list[int], inner: tuple[int, ...]):
    parts = [np.random.default_rng(size).random((size, *inner)) for size in sizes]
    file = ArrayFile(tmp_path / "new/a.f64", np.float64, inner)
    for part in parts:
        file.append(part)

    found = file.finish()

    np.testing.assert_array_equal(found, np.concatenate([np.zeros((0, *inner)), *parts]))
    found[:1] = -1
    assert (map_array(tmp_path / "new/a.f64", np.float64, inner) >= 0).all(), "a change is not written to the file"


def test_processes_share_what_they_write_into_an_array(tmp_path: Path):
    one, other = (shared_array(tmp_path / "a.f32", np.float32, (4, 2)) for _ in range(2))

    one[1] = 7

    assert other.tolist() == [[0, 0], [7, 7], [0, 0], [0, 0]]
    assert shared_array(tmp_path / "none.f32", np.float32, (0, 2)).shape == (0, 2)
