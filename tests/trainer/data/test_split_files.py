"""Splits in files: they read like the lists that were written, and hold no rows in memory."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distillchain_trainer.data.handover import read_task_data, write_task_data
from distillchain_trainer.data.mapped_columns import BLOCK_ROWS, Chained, key_array
from distillchain_trainer.data.split import Split, TaskData, key_of
from distillchain_trainer.data.split_writer import SplitWriter, open_split

COUNTS = [0, 1, 2, BLOCK_ROWS - 1, BLOCK_ROWS, BLOCK_ROWS + 1, 3 * BLOCK_ROWS + 7]


def texts_of(count: int) -> list[tuple[str, ...]]:
    """Rows of one to three texts of one to four bytes per character, some of them empty."""
    return [tuple(f"{'né日𝄞'[row % 4]}{row}" * (row % 3) for _ in range(1 + row % 3)) for row in range(count)]


def write(folder: Path, texts: list[tuple[str, ...]], targets: list[Any]) -> Split:
    writer = SplitWriter(folder, "train", place_prefix="a.tsv:")
    for row, text in enumerate(texts):
        writer.add(text, targets[row] if targets else None, number=row + 2)
    return writer.close()


TARGETS = {
    "none": lambda _: None,
    "classes": lambda row: row % 5,
    "numbers": lambda row: row / 7,
    "lists of classes, the first of them empty": lambda row: [row, 3][: row % 3],
    "lists of numbers": lambda row: [row / 3] * (row % 4),
    "empty lists": lambda _: [],
}


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("kind", TARGETS)
def test_a_split_in_files_reads_like_lists(tmp_path: Path, count: int, kind: str):
    texts, targets = texts_of(count), [TARGETS[kind](row) for row in range(count)] if kind != "none" else []

    split = write(tmp_path / "a", texts, targets)

    in_memory = Split("train", texts, targets, [key_of(text) for text in texts], "a.tsv:", range(2, count + 2))
    for found in (split, open_split(tmp_path / "a")):
        assert list(found.texts) == texts
        assert list(found.targets) == targets
        assert list(found.keys) == in_memory.keys
        assert [found.place(row) for row in range(0, count, 97)] == [
            in_memory.place(row) for row in range(0, count, 97)
        ]
        assert found.facts == in_memory.facts
        assert found.text_numbers(0, count).tolist() == in_memory.text_numbers(0, count).tolist()
        assert found.fingerprints.tolist() == in_memory.fingerprints.tolist()


@pytest.mark.parametrize("count", [1, 5, BLOCK_ROWS + 3])
def test_columns_are_sliced_as_lists(tmp_path: Path, count: int):
    texts = texts_of(count)
    split = write(tmp_path, texts, list(range(count)))
    chained = Chained((split.texts, texts, split.texts[:2]))
    expected = texts * 2 + texts[:2]

    for start, stop, step in [(0, 3, 1), (2, 1, 1), (-2, None, 1), (None, None, -7), (count - 1, count + 4, 1)]:
        assert split.texts[start:stop:step] == texts[start:stop:step]
        assert chained[start:stop:step] == expected[start:stop:step]
    assert (split.texts[-1], chained[-1]) == (texts[-1], expected[-1])
    assert list(chained) == expected
    with pytest.raises(IndexError):
        split.texts[count]


def test_a_sample_has_rows_that_no_period_of_the_file_decides(tmp_path: Path):
    texts, classes = texts_of(1200), [row % 2 for row in range(1200)]
    whole = write(tmp_path / "a", texts, classes)
    turned = write(tmp_path / "b", texts[::-1], classes[::-1])

    part = whole.sample(400, name="part")

    assert len(part) == 400
    places = [whole.place(row) for row in range(1200)]
    rows = [places.index(part.place(row)) for row in range(400)]
    assert rows == sorted(rows)
    assert list(part.texts) == [texts[row] for row in rows]
    assert list(part.targets) == [classes[row] for row in rows]
    assert list(part.keys) == [key_of(texts[row]) for row in rows]
    assert 0.3 < sum(part.targets) / 400 < 0.7
    assert list(write(tmp_path / "c", texts, []).sample(400, name="part").targets) == []
    assert sorted(turned.sample(400, name="part").keys) == sorted(part.keys)


def test_the_sha256_of_a_split_is_that_of_all_keys_and_all_targets_as_json(tmp_path: Path):
    """It is written into manifests, so it must not depend on blocks."""
    import hashlib

    texts, targets = texts_of(2 * BLOCK_ROWS + 5), [row % 3 for row in range(2 * BLOCK_ROWS + 5)]

    found = write(tmp_path, texts, targets).facts.sha256

    content = b"".join(key_of(text) for text in texts) + json.dumps(targets).encode()
    assert found == hashlib.sha256(content).hexdigest()


def test_targets_of_another_kind_than_the_first_are_an_error(tmp_path: Path):
    writer = SplitWriter(tmp_path, "train")
    for row in range(BLOCK_ROWS):
        writer.add(("a",), row, number=row)
    writer.add(("a",), 0.5, number=BLOCK_ROWS)

    with pytest.raises(TypeError, match="targets of type float64"):
        writer.close()


def test_a_second_split_in_the_same_folder_replaces_the_first(tmp_path: Path):
    write(tmp_path, texts_of(9), [[1]] * 9)

    assert list(write(tmp_path, texts_of(3), [1, 2, 0]).targets) == [1, 2, 0]


def test_keys_of_chained_splits_are_one_array(tmp_path: Path):
    one, other = write(tmp_path / "a", texts_of(9), []), write(tmp_path / "b", texts_of(5), [])

    found = key_array(Chained((one.keys, other.keys)), tmp_path / "keys.u8")

    assert found.tobytes() == b"".join([*one.keys, *other.keys])


def test_other_processes_of_a_node_map_the_same_rows(tmp_path: Path):
    """Also rows that a task type holds in lists."""
    texts = texts_of(7)
    train = write(tmp_path / "train-rows", texts, list(range(7)))
    validation = Split("validation", texts[:2], [0.5, 1.5], [key_of(text) for text in texts[:2]])
    data = TaskData(train, validation, None, "v1")

    write_task_data(tmp_path / "rows.json", data)
    found = read_task_data(tmp_path / "rows.json")

    assert found.revision == "v1"
    assert found.test is None
    assert found.train.folder == train.folder
    for name, split in data.splits.items():
        assert list(found.splits[name].texts) == list(split.texts)
        assert list(found.splits[name].targets) == list(split.targets)
        assert found.splits[name].facts == split.facts
    assert [found.train.place(row) for row in range(7)] == [train.place(row) for row in range(7)]


def test_memory_does_not_grow_with_the_rows(tmp_path: Path):
    def peak(rows: int) -> int:
        tracemalloc.start()
        writer = SplitWriter(tmp_path / str(rows), "train")
        for row in range(rows):
            writer.add((f"the text of row {row}",), row % 2, number=row)
        split = writer.close()
        assert sum(1 for _ in split.texts) == int(np.asarray(split.targets).size) == rows
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    few, many = peak(3 * BLOCK_ROWS), peak(12 * BLOCK_ROWS)

    assert many < 1.2 * few, f"{few} bytes for {3 * BLOCK_ROWS} rows, {many} for four times as many"
