"""Unlabelled text: which texts are used, how the others are counted, and what is refused."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from distillchain_trainer.data import unlabelled
from distillchain_trainer.data.handover import read_task_data, write_task_data
from distillchain_trainer.data.split import TaskData, key_of
from distillchain_trainer.errors import DataInvalid
from distillchain_trainer.stage_warnings import StageWarnings
from distillchain_trainer.tasks.text_classification.rows import read_task_data as read_splits
from distillchain_trainer.tasks.transfer_text import with_transfer
from trainer.data_files import LABELS, Task, texts_of

TRAIN = [("a bad film", 0), ("a good film", 1)]
DEV = [("Held  out bad", 0), ("held out good", 1)]
TEST = [("tested bad", 0), ("tested good", 1)]


def read(
    folder: Path, files: dict[str, bytes], *, text: list[str] | None = None, rows: int | None = None
) -> tuple[TaskData, list[str]]:
    """The data of a small task with these files as its unlabelled text, and the warnings."""
    for name, split in (("train.tsv", TRAIN), ("dev.tsv", DEV), ("test.tsv", TEST)):
        (folder / name).write_text("sentence\tlabel\n" + "".join(f"{cell}\t{label}\n" for cell, label in split))
    for name, content in files.items():
        (folder / name).write_bytes(content)
    transfer = {"uri": f"file://{folder}", "files": list(files), "text": text, "rows": rows}
    task = Task.parse(
        {
            "type": "TextClassification",
            "dataset": {
                "uri": f"file://{folder}",
                "splits": {"train": "train.tsv", "validation": "dev.tsv", "test": "test.tsv"},
                "text": ["sentence"],
                "label": "label",
            },
            "labels": LABELS,
            "transfer": {name: value for name, value in transfer.items() if value is not None},
        }
    )
    warnings = StageWarnings()
    place: dict[str, Any] = {"endpoint_url": None, "region": None, "folder": folder / "s", "warnings": warnings}
    return with_transfer(read_splits(task, **place), task, **place), warnings.sentences


def used(data: TaskData) -> list[str]:
    assert data.transfer is not None
    return texts_of(data.transfer)


def parquet(**columns: list[Any]) -> bytes:
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.table(columns), sink)
    return bytes(sink.getvalue())


@pytest.mark.parametrize(
    "name, content, text",
    [
        pytest.param("a.txt", b"one\n\ntwo \r\n\n", None, id="txt"),
        pytest.param("a.TXT", b"\xef\xbb\xbfone\ntwo ", None, id="txt with a byte order mark, no last line break"),
        pytest.param("a.txt.gz", gzip.compress(b"one\ntwo \n"), None, id="txt.gz"),
        pytest.param("a.tsv", b"sentence\tid\none\t1\ntwo \t2\n", None, id="tsv, the data set's column"),
        pytest.param("a.csv", b"id,review\n1,one\n2,two \n", ["review"], id="csv, another column"),
        pytest.param("a.jsonl", b'{"review": "one"}\n{"review": null}\n{"review": "two "}\n', ["review"], id="jsonl"),
        pytest.param("a.parquet", parquet(review=["one", None, "", "two "]), ["review"], id="parquet"),
    ],
)
def test_each_kind_of_file_is_read(tmp_path: Path, name: str, content: bytes, text: list[str] | None):
    data, warnings = read(tmp_path, {name: content}, text=text)

    assert used(data) == ["one", "two "]
    assert not warnings


def test_texts_that_are_held_out_known_repeated_or_empty_are_left_out_and_counted(tmp_path: Path):
    first = "new\n \nHELD OUT bad\nA Good  film\ntested GOOD\nNew\n"
    second = '{"sentence": "newer"}\n{"sentence": "NEW"}\n{"sentence": "held out good"}\n{"sentence": ""}\n'

    data, warnings = read(tmp_path, {"a.txt": first.encode(), "b.jsonl": second.encode()})

    assert used(data) == ["new", "newer"]
    assert data.facts["transfer"].left_out == {"empty": 2, "validation": 2, "test": 1, "train": 1, "repeated": 2}
    assert not warnings
    assert data.transfer is not None
    assert [data.transfer.place(row) for row in (0, 1)] == [
        f"file://{tmp_path}/a.txt:1",
        f"file://{tmp_path}/b.jsonl:1",
    ]


def test_one_text_in_two_unicode_forms_is_repeated_and_characters_that_look_different_are_not(tmp_path: Path):
    lines = "caf\u00e9\nCAFE\u0301\nx\u00b2\nx2\n"

    data, _ = read(tmp_path, {"a.txt": lines.encode()})

    assert used(data) == ["caf\u00e9", "x\u00b2", "x2"]


@pytest.mark.parametrize("block_rows", [1, 3, 65_536])
def test_the_first_rows_that_can_be_used_are_taken(tmp_path: Path, block_rows: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(unlabelled, "BLOCK_ROWS", block_rows)
    lines = "one\ntested bad\nOne\ntwo\nthree\ntwo\n\nfour\n"

    data, warnings = read(tmp_path, {"a.txt": lines.encode(), "missing.txt": b"five\n"}, rows=3)

    assert used(data) == ["one", "two", "three"]
    assert data.facts["transfer"].left_out == {"empty": 0, "validation": 0, "test": 1, "train": 0, "repeated": 1}
    assert not warnings


def test_fewer_texts_than_asked_for_are_a_warning(tmp_path: Path):
    _, (warning,) = read(tmp_path, {"a.txt": b"one\n\ntested bad\n"}, rows=5)

    assert warning == (
        f"spec.task.transfer.rows: got 5, but only 1 of the texts of file://{tmp_path} can be used "
        "(left out: 1 empty, 1 in test)"
    )


@pytest.mark.parametrize(
    "name, content, want",
    [
        pytest.param("a.txt", b"tested bad\n\n", "spec.task.transfer.files: no text of {u} can be used (1 empty, 1 in test); name files with other texts than those of spec.task.dataset", id="nothing new"),
        pytest.param("a.txt", b"", "spec.task.transfer.files: no text of {u} can be used (the files are empty); name files with other texts than those of spec.task.dataset", id="an empty file"),
        pytest.param("a.txt", b"one\rtwo\r", "{u}/a.txt: its lines end in CR alone, as on old Macs; convert the line ends to LF, for example with `tr '\\r' '\\n'`", id="old line ends"),
        pytest.param("a.txt", b"one\n\xff\n", "{u}/a.txt:2: byte 0xff is not UTF-8; convert the file to UTF-8", id="another encoding"),
        pytest.param("a.txt", gzip.compress(b"one"), "{u}/a.txt: the name ends in .txt, but the content is gzip; decompress it, or let its name end in .txt.gz", id="compressed"),
        pytest.param("a.jsonl", b'{"sentence": 5}\n', '{u}/a.jsonl:1, column "sentence": got 5, expected text; convert it to text, or name another column', id="a number"),
        pytest.param("a.tsv", b"review\none\n", '{u}/a.tsv:1: no column "sentence" (spec.task.transfer.text); expected one of review', id="another column"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused(tmp_path: Path, name: str, content: bytes, want: str):
    with pytest.raises(DataInvalid) as refused:
        read(tmp_path, {name: content})
    assert str(refused.value) == want.format(u=f"file://{tmp_path}")


def test_students_learn_from_the_labelled_rows_and_then_from_the_others(tmp_path: Path):
    data, _ = read(tmp_path, {"a.txt": b"one\n", "b.txt": b"two\n"})

    assert texts_of(data.taught) == ["a bad film", "a good film", "one", "two"]
    assert data.taught.targets == data.train.targets == [0, 1]
    assert data.taught.keys[2:] == [key_of(("one",)), key_of(("two",))]
    assert data.taught.place(3) == f"file://{tmp_path}/b.txt:1"


def test_the_other_processes_of_a_node_get_the_same_text(tmp_path: Path):
    data, _ = read(tmp_path, {"a.txt": b"one\n\n", "b.txt": b"two\n"})

    write_task_data(tmp_path / "rows.json", data)

    again = read_task_data(tmp_path / "rows.json")
    assert again.facts == data.facts
    assert texts_of(again.taught) == texts_of(data.taught)
    assert again.taught.place(3) == data.taught.place(3)
    assert json.loads((tmp_path / "rows.json").read_text())["splits"]["transfer"]["left_out"]["empty"] == 1


@pytest.mark.parametrize(
    "name, content",
    [
        pytest.param(
            "a.tsv", b"sentence\tid\none\t1\ntwo\t2\nthree\tonly\ttoo many\n", id="a line that cannot be read"
        ),
        pytest.param(
            "a.jsonl", b'{"sentence": "one"}\n{"sentence": "two"}\n{"sentence": 3}\n', id="a cell that is no text"
        ),
    ],
)
def test_a_faulty_row_matters_only_within_the_wanted_rows(tmp_path: Path, name: str, content: bytes):
    data, warnings = read(tmp_path, {name: content}, rows=2)

    assert (used(data), warnings) == (["one", "two"], [])
    with pytest.raises(DataInvalid, match=r"a\.(tsv:4|jsonl:3)"):
        read(tmp_path, {name: content}, rows=3)
