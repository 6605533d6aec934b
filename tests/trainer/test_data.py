"""Data files as people have them: read right, or refused with file, line and column."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from distillchain_api.tasks.text_classification import TextClassification as Task
from distillchain_trainer.data.tables import read_rows
from distillchain_trainer.errors import DataInvalid
from distillchain_trainer.tasks.text_classification.rows import Split, hub_rows, read_task_data
from later import Later

datasets = Later("datasets")
pandas = Later("pandas")
polars = Later("polars")

LABELS = ["negative", "positive"]


def a_task(folder: Path, name: str, **parts: Any) -> Task:
    return Task.parse(
        {
            "type": "TextClassification",
            "dataset": {
                "uri": f"file://{folder}",
                "splits": {"train": name, "validation": parts.get("validation", name)},
                "text": parts.get("text", ["sentence"]),
                "label": "label",
            },
            "labels": parts.get("labels", LABELS),
        }
    )


def read(folder: Path, name: str, **parts: Any) -> Split:
    task = a_task(folder, name, **parts)
    return read_task_data(task, endpoint_url=None, region=None, folder=folder / "scratch").train


def texts_of(split: Split) -> list[str]:
    return [texts[0] for texts in split.texts]


GOOD_FILES = [
    pytest.param("a.tsv", b'sentence\tlabel\n"quoted start\t0\na " alone\t1\n', ['"quoted start', 'a " alone'], id="tsv: lone quotation marks"),
    pytest.param("a.tsv", b'sentence\tlabel\n"all" \'of\' "it"\t0\n""\t1\n', ['"all" \'of\' "it"', '""'], id="tsv: marks stay as written"),
    pytest.param("a.tsv", b"\xef\xbb\xbfsentence\tlabel\r\nnot bad\t0\r\ngood\t1\r\n", ["not bad", "good"], id="tsv: byte order mark and CRLF"),
    pytest.param("a.tsv", b"label\tid\tsentence\n0\t7\tbad\n1\t8\tgood", ["bad", "good"], id="tsv: other columns and order, no last line break"),
    pytest.param("a.tsv", "sentence\tlabel\nbad\u2028film\t0\ngood\x0bone\x85\t1\n".encode(), ["bad\u2028film", "good\x0bone\x85"], id="tsv: odd separators within a text"),
    pytest.param("a.tsv", b"sentence\tlabel\nNA\t0\nnull\t1\n", ["NA", "null"], id="tsv: texts that pandas would take for nothing"),
    pytest.param("a.csv", b'sentence,label\n"bad, really",0\n"good ""film""",1\n', ["bad, really", 'good "film"'], id="csv: RFC 4180"),
    pytest.param("a.csv", b'\xef\xbb\xbfsentence,label\r\n"two\r\nlines",0\r\ngood,1\r\n\r\n', ["two\r\nlines", "good"], id="csv: line break within, BOM, CRLF, blank end"),
    pytest.param("a.csv", b'sentence,label\r\n"a\rb",0\r\ngood,1\r\n\r\n', ["a\rb", "good"], id="csv: bare CR within, blank end"),
    pytest.param("a.csv.gz", gzip.compress(b"sentence,label\nbad,0\ngood,1\n"), ["bad", "good"], id="csv.gz"),
    pytest.param("a.tsv.gz", gzip.compress(b"sentence\tlabel\nbad\t0\ngood\t1\n"), ["bad", "good"], id="tsv.gz"),
    pytest.param("a.jsonl", b'{"sentence": "bad\\n\\"x\\"", "label": 0}\n{"label": "positive", "sentence": "good"}\n', ['bad\n"x"', "good"], id="jsonl: names and numbers by turns"),
    pytest.param("a.jsonl.gz", gzip.compress(b'{"sentence": "bad", "label": 0.0}\r\n{"sentence": "good", "label": "1"}\r\n'), ["bad", "good"], id="jsonl.gz"),
]  # fmt: skip


@pytest.mark.parametrize("name, content, want", GOOD_FILES)
def test_a_file_is_read_as_it_was_meant(tmp_path: Path, name: str, content: bytes, want: list[str]):
    (tmp_path / name).write_bytes(content)

    split = read(tmp_path, name)

    assert texts_of(split) == want
    assert split.classes == [0, 1]


def test_a_tsv_that_was_written_with_quoting_is_read_as_it_stands_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    cell = b'"a ""good"" film"'
    (tmp_path / "a.tsv").write_bytes(b"sentence\tlabel\nbad\t0\n" + cell + b"\t1\n" + cell + b"\t1\n")

    rows = [row.cells[0] for row in read_rows(tmp_path / "a.tsv", ["sentence"], name="a.tsv")]

    assert rows == ["bad", cell.decode(), cell.decode()]
    (told,) = caplog.records
    assert told.message == "a tsv cell looks quoted as in csv; its quotation marks are kept as part of the text"
    assert vars(told)["at"] == "a.tsv:3"


@pytest.mark.parametrize(
    "cells, labels, want",
    [
        pytest.param(["0", "1"], LABELS, [0, 1], id="numbers"),
        pytest.param(["0.0", "1.0"], LABELS, [0, 1], id="decimals, as pandas writes columns with gaps"),
        pytest.param(["negative", "1", "1.0", "positive"], LABELS, [0, 1, 1, 1], id="by turns"),
        pytest.param(["Negative", "POSITIVE"], LABELS, [0, 1], id="another case"),
        pytest.param(["positive", "negative"], ["positive", "negative"], [0, 1], id="order of the task"),
        pytest.param(["1", "2", "1.0"], ["1", "2"], [0, 1, 0], id="labels that are numbers are names"),
        pytest.param(["2", "10", "2"], ["10", "2"], [1, 0, 1], id="numeric names in any order"),
        pytest.param(["no", "yes"], ["no", "yes"], [0, 1], id="words YAML would read as booleans"),
    ],
)
def test_labels_are_names_or_numbers(tmp_path: Path, cells: list[str], labels: list[str], want: list[int]):
    (tmp_path / "a.tsv").write_text("sentence\tlabel\n" + "".join(f"text {c}\t{c}\n" for c in cells))

    assert read(tmp_path, "a.tsv", labels=labels).classes == want


def _pandas(path: Path, **columns: Any) -> None:
    frame = pandas.DataFrame({"sentence": ["skipped", "bad", "good"], "label": [1, 0, 1], **columns})
    frame[frame.sentence != "skipped"].to_parquet(path)  # an index column remains


def _polars(path: Path) -> None:
    polars.DataFrame({"sentence": ["bad", "good"], "label": ["negative", "positive"]}).write_parquet(path)


def _category(path: Path) -> None:
    frame = pandas.DataFrame({"sentence": ["bad", "good"], "label": ["negative", "positive"]})
    frame.astype("category").to_parquet(path)


def _large(path: Path) -> None:
    table = pyarrow.table(
        {"sentence": pyarrow.array(["bad", "good"], pyarrow.large_string()), "label": pyarrow.array([0, 1], "int8")}
    )
    pyarrow.parquet.write_table(table, path, row_group_size=1)


def _decimal(path: Path) -> None:
    pandas.DataFrame({"sentence": ["bad", "good"], "label": [0.0, 1.0]}).to_parquet(path)


@pytest.mark.parametrize("write", [_pandas, _polars, _category, _large, _decimal])
def test_parquet_of_every_writer_is_read(tmp_path: Path, write: Any):
    write(tmp_path / "a.parquet")

    split = read(tmp_path, "a.parquet")

    assert texts_of(split) == ["bad", "good"]
    assert split.classes == [0, 1]


def test_two_text_columns_are_a_pair(tmp_path: Path):
    (tmp_path / "a.csv").write_text("a,label,b\nx,0,y\nz,1,w\n")

    assert read(tmp_path, "a.csv", text=["b", "a"]).texts == [("y", "x"), ("w", "z")]


def test_rows_are_keyed_by_content_not_by_place(tmp_path: Path):
    (tmp_path / "a.csv").write_text("a,label,b\nab,0,c\na,1,bc\nab,1,c\n")

    keys = read(tmp_path, "a.csv", text=["a", "b"]).keys

    assert keys[0] == keys[2] != keys[1]


HEAD = b"sentence\tlabel\n"
BAD_FILES = [
    pytest.param("a.tsv", HEAD + b"bad\t0\ngo\tod\t1\n", "{f}:3: 3 cells, the header has 2; a tsv cell holds neither tab nor line break, and quotation marks mean nothing: correct the line", id="tsv: a tab too many"),
    pytest.param("a.tsv", HEAD + b"bad\t0\ngood\n", "{f}:3: 1 cell, the header has 2; a tsv cell holds neither tab nor line break, and quotation marks mean nothing: correct the line", id="tsv: a cell too few"),
    pytest.param("a.tsv", HEAD + b"bad\t0\n\t1\n", '{f}:3, column "sentence": the cell is empty; fill it or remove the row', id="tsv: empty text"),
    pytest.param("a.tsv", HEAD + b"bad\t0\ngood\t\n", '{f}:3, column "label": the cell is empty; fill it or remove the row', id="tsv: empty label"),
    pytest.param("a.tsv", HEAD + b"bad\t0\ngood\tpositiv\n", '{f}:3, column "label": got "positiv", expected one of negative, positive, or a number from 0 to 1 in that order; correct the row or spec.task.labels', id="label outside"),
    pytest.param("a.tsv", HEAD + b"bad\t0\ngood\t2\n", '{f}:3, column "label": got "2", expected one of negative, positive, or a number from 0 to 1 in that order; correct the row or spec.task.labels', id="number outside"),
    pytest.param("a.tsv", HEAD + b"bad\t0\ngood\t0.5\n", '{f}:3, column "label": got "0.5", expected one of negative, positive, or a number from 0 to 1 in that order; correct the row or spec.task.labels', id="no whole number"),
    pytest.param("a.tsv", HEAD + b"bad\t-1\n", '{f}:2, column "label": got "-1", expected one of negative, positive, or a number from 0 to 1 in that order; correct the row or spec.task.labels', id="hidden labels of GLUE"),
    pytest.param("a.tsv", b"sentence\tlabels\nbad\t0\n", '{f}:1: no column "label"; did you mean labels?', id="missing column"),
    pytest.param("a.tsv", b"sentence\tlabel\tlabel\nbad\t0\t1\n", '{f}:1: 2 columns are named "label"; rename all but one', id="two columns of one name"),
    pytest.param("a.tsv", b"sentence,label\nbad,0\n", "{f}:1: no column \"sentence\"; the only column is 'sentence,label': name the file .csv or .tsv by what parts its cells (comma or tab)", id="csv named tsv"),
    pytest.param("a.tsv", HEAD + b"good\t1\nb\xe9ant\t0\n", "{f}:3: byte 0xe9 is not UTF-8; convert the file to UTF-8", id="Latin-1"),
    pytest.param("a.tsv", HEAD, "spec.task.dataset.splits.train: {f} has no rows; expected at least one", id="header alone"),
    pytest.param("a.tsv", b"", '{f}: the file is empty; expected rows with "sentence", "label"', id="empty file"),
    pytest.param("a.tsv", HEAD + b"good\t1\nfine\t1\n", 'spec.task.dataset.splits.train: no row of {f} is of class "negative"; add such rows or remove the class from spec.task.labels', id="a class missing in train"),
    pytest.param("a.csv", b'sentence,label\ngood,1\n"bad film,0\nfine,1\n', "{f}:3: unexpected end of data; a cell with a quotation mark, comma or line break stands in quotation marks, and marks within it are doubled (\"\")", id="csv: a mark never closed"),
    pytest.param("a.csv", b'sentence,label\n"bad" film,0\n', "{f}:2: ',' expected after '\"'; a cell with a quotation mark, comma or line break stands in quotation marks, and marks within it are doubled (\"\")", id="csv: text after a mark"),
    pytest.param("a.csv", b"sentence,label\nbad, really,0\n", "{f}:2: 3 cells, the header has 2; a cell with a comma stands in quotation marks: correct the line", id="csv: bare comma"),
    pytest.param("a.csv", b"sentence,label\nbad,0\n\ngood,1\n", "{f}:3: the line is blank, and rows follow; remove it", id="csv: blank line between"),
    pytest.param("a.csv", b'sentence,label\n"a\rb\rc",0\ngood,1\n\nfine,1\n', "{f}:6: the line is blank, and rows follow; remove it", id="csv: blank line after bare CRs within a cell"),
    pytest.param("a.jsonl", b'{"sentence": "fine", "label": 1}\n{"sentence": "cut \\ud83d", "label": 0}\n', '{f}:2, column "sentence": character 5 is \\ud83d, half of a surrogate pair; correct the text, or what cut it', id="jsonl: half an emoji"),
    pytest.param("a.csv.gz", gzip.compress(b"sentence,label\nbad,0\n" * 99)[:-12], "{f}: the file is cut short; copy it again", id="gz cut short"),
    pytest.param("a.csv.gz", b"sentence,label\nbad,0\n", "{f}: not a whole gzip file (Not a gzipped file (b'se')); copy it again, or drop .gz", id="not gz at all"),
    pytest.param("a.jsonl", b'{"sentence": "bad", "label": 0}\n{"sentence": "good"}\n', '{f}:2: no column "label"; expected one of sentence', id="jsonl: key missing"),
    pytest.param("a.jsonl", b'{"sentence": "bad", "label": 0}\n["good", 1]\n', '{f}:2: got ["good", 1], expected a JSON object; write one object a line', id="jsonl: a list"),
    pytest.param("a.jsonl", b'{"sentence": 5, "label": 0}\n', '{f}:1, column "sentence": got 5, expected text', id="jsonl: text is a number"),
    pytest.param("a.jsonl", b'{"sentence": null, "label": 0}\n', '{f}:1, column "sentence": the cell is empty; fill it or remove the row', id="jsonl: null"),
    pytest.param("a.jsonl", b'{"sentence": "x", "label": true}\n', '{f}:1, column "label": got true, expected one of negative, positive, or a number from 0 to 1 in that order; correct the row or spec.task.labels', id="jsonl: true is no class"),
    pytest.param("a.jsonl", b'{"sentence": "x", "label": [1]}\n', '{f}:1, column "label": got [1], expected a class name or number; correct the row or spec.task.labels', id="jsonl: label is a list"),
    pytest.param("a.jsonl", b'{"sentence": "x", "label": 0, "label": 1}\n', '{f}:1: not a JSON object ("label" stands twice); write one object a line', id="jsonl: key twice"),
    pytest.param("a.parquet", b"PAR1 not really", "{f}: not a whole parquet file (Parquet magic bytes not found in footer. Either the file is corrupted or this is not a parquet file.); copy it again", id="no parquet"),
    pytest.param("a.txt", b"bad 0\n", "{f}: unknown kind of file; expected csv, tsv or jsonl (also as .gz), or parquet", id="unknown kind"),
]  # fmt: skip


@pytest.mark.parametrize("name, content, want", BAD_FILES)
def test_what_cannot_be_read_surely_is_refused(tmp_path: Path, name: str, content: bytes, want: str):
    (tmp_path / name).write_bytes(content)

    with pytest.raises(DataInvalid) as failure:
        read(tmp_path, name)

    assert str(failure.value) == want.format(f=f"file://{tmp_path}/{name}")


def test_a_missing_file_is_named_with_what_is_there(tmp_path: Path):
    (tmp_path / "train.tsv").write_bytes(HEAD + b"bad\t0\ngood\t1\n")

    with pytest.raises(DataInvalid) as failure:
        read(tmp_path, "train.tsv", validation="dev.tsv")

    want = f"spec.task.dataset.splits.validation: file://{tmp_path}/dev.tsv does not exist; the folder holds train.tsv"
    assert str(failure.value) == want


def test_null_in_parquet_is_named_by_row(tmp_path: Path):
    pandas.DataFrame({"sentence": ["bad", None], "label": [0, 1]}).to_parquet(tmp_path / "a.parquet")

    with pytest.raises(DataInvalid, match=r'a\.parquet, row 2, column "sentence": the cell is empty'):
        read(tmp_path, "a.parquet")


def test_a_class_missing_in_validation_is_only_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / "train.tsv").write_bytes(HEAD + b"bad\t0\nso-so\t1\ngood\t2\n")
    (tmp_path / "dev.tsv").write_bytes(HEAD + b"good\t2\nbad\t0\n")

    read(tmp_path, "train.tsv", validation="dev.tsv", labels=["negative", "neutral", "positive"])

    assert "a class has no rows" in caplog.text


@pytest.mark.parametrize(
    "rows, want",
    [
        pytest.param(b"", "{f} has no rows; expected at least one", id="no rows"),
        pytest.param(
            b"good\t1\nfine\t1\n",
            'every row of {f} is of class "positive", so no model can be told from chance; add rows of the other classes',
            id="a single class",
        ),
    ],
)
def test_validation_that_can_tell_nothing_is_refused(tmp_path: Path, rows: bytes, want: str):
    (tmp_path / "train.tsv").write_bytes(HEAD + b"bad\t0\ngood\t1\n")
    (tmp_path / "dev.tsv").write_bytes(HEAD + rows)

    with pytest.raises(DataInvalid) as failure:
        read(tmp_path, "train.tsv", validation="dev.tsv")

    want = want.format(f=f"file://{tmp_path}/dev.tsv")
    assert str(failure.value) == f"spec.task.dataset.splits.validation: {want}"


@pytest.mark.parametrize("offset", [20, 2000])
def test_parquet_damaged_in_its_pages_is_refused(tmp_path: Path, offset: int):
    sentences = [f"some text {row}" for row in range(5000)]
    pandas.DataFrame({"sentence": sentences, "label": [row % 2 for row in range(5000)]}).to_parquet(
        tmp_path / "a.parquet"
    )
    content = bytearray((tmp_path / "a.parquet").read_bytes())
    content[offset : offset + 16] = b"\xff" * 16
    (tmp_path / "a.parquet").write_bytes(content)

    with pytest.raises(
        DataInvalid, match=rf"^file://{tmp_path}/a\.parquet: not a whole parquet file \(.*; copy it again$"
    ):
        read(tmp_path, "a.parquet")


def test_what_the_file_system_does_not_give_is_said(tmp_path: Path):
    """A folder where the file was expected stands in for a file of another user: root may read everything."""
    (tmp_path / "a.csv").mkdir()

    with pytest.raises(DataInvalid) as failure:
        read_rows(tmp_path / "a.csv", ["sentence"], name="s3://b/a.csv")

    want = "s3://b/a.csv cannot be read (Is a directory); name a place that the trainer's user may read"
    assert str(failure.value) == want


def a_table(names: list[str] | None, numbers: list[int]) -> Any:
    label = datasets.ClassLabel(names=names) if names else datasets.Value("int64")
    features = datasets.Features({"sentence": datasets.Value("string"), "label": label})
    return datasets.Dataset.from_dict({"sentence": ["x"] * len(numbers), "label": numbers}, features=features)


@pytest.mark.parametrize(
    "names, want",
    [
        pytest.param(["positive", "negative"], ["positive", "negative"], id="names in another order"),
        pytest.param(["NEGATIVE", "POSITIVE"], ["NEGATIVE", "POSITIVE"], id="another case"),
        pytest.param(["0", "1"], [0, 1], id="names that only count are none"),
        pytest.param(None, [0, 1], id="plain numbers"),
    ],
)
def test_class_numbers_of_the_hub_are_read_by_their_names(tmp_path: Path, names: list[str] | None, want: list[object]):
    task = a_task(tmp_path, "train")

    rows = hub_rows(a_table(names, [0, 1]), task, "hf://x, split train")

    assert [row.cells[-1] for row in rows] == want


def test_other_class_names_of_the_hub_are_refused(tmp_path: Path):
    task = a_task(tmp_path, "train", labels=["positive", "negative"])

    with pytest.raises(DataInvalid) as failure:
        list(hub_rows(a_table(["neg", "pos"], [0, 1]), task, "hf://imdb, split train"))

    assert str(failure.value) == (
        "hf://imdb, split train: its classes are neg, pos, spec.task.labels are positive, negative; "
        "name the labels as the data set does, in any order"
    )


def test_nothing_of_json_is_lost_on_the_way(tmp_path: Path):
    rows = [{"sentence": f'line {i} \u00e9 \t "', "label": i % 2} for i in range(50)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    assert texts_of(read(tmp_path, "a.jsonl")) == [row["sentence"] for row in rows]
