"""Data files as users have them: read as written, or refused with file, line and column."""

from __future__ import annotations

import gzip
import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from distillchain_trainer.data.tables import read_table
from distillchain_trainer.errors import DataInvalid
from distillchain_trainer.stage_warnings import StageWarnings
from later import Later
from trainer.data_files import HEADER, LABELS, read_all, read_train, texts_of

datasets = Later("datasets")
pandas = Later("pandas")
polars = Later("polars")

GOOD_FILES = [
    pytest.param("a.tsv", b'sentence\tlabel\n"quoted start\t0\na " alone\t1\n', ['"quoted start', 'a " alone'], id="tsv: lone quotation marks"),
    pytest.param("a.tsv", b'sentence\tlabel\n"all" \'of\' "it"\t0\n""\t1\n', ['"all" \'of\' "it"', '""'], id="tsv: marks stay as written"),
    pytest.param("a.tsv", b"\xef\xbb\xbfsentence\tlabel\r\nnot bad\t0\r\ngood\t1\r\n", ["not bad", "good"], id="tsv: byte order mark and CRLF"),
    pytest.param("a.tsv", b"label\tid\tsentence\n0\t7\tbad\n1\t8\tgood", ["bad", "good"], id="tsv: other columns and order, no last line break"),
    pytest.param("a.tsv", "sentence\tlabel\nbad\u2028film\t0\ngood\x0bone\x85\t1\n".encode(), ["bad\u2028film", "good\x0bone\x85"], id="tsv: odd separators within a text"),
    pytest.param("a.tsv", b"sentence\tlabel\nNA\t0\nnull\t1\n", ["NA", "null"], id="tsv: texts that pandas reads as missing values"),
    pytest.param("a.csv", b'sentence,label\n"bad, really",0\n"good ""film""",1\n', ["bad, really", 'good "film"'], id="csv: RFC 4180"),
    pytest.param("a.csv", b'\xef\xbb\xbfsentence,label\r\n"two\r\nlines",0\r\ngood,1\r\n\r\n', ["two\r\nlines", "good"], id="csv: line break within, BOM, CRLF, blank end"),
    pytest.param("a.csv", b'sentence,label\r\n"a\rb",0\r\ngood,1\r\n\r\n', ["a\rb", "good"], id="csv: bare CR within, blank end"),
    pytest.param("a.tsv", b"sentence\tlabel\nbad\t0\ngood\t1\n\n\r\n", ["bad", "good"], id="tsv: blank lines at the end"),
    pytest.param("a.csv", b"sentence,label\nbad,0\ngood,1\n\n\r\n", ["bad", "good"], id="csv: blank lines at the end"),
    pytest.param("a.csv", b"sentence,label\rbad,0\rgood,1\r", ["bad", "good"], id="csv: lines that end in CR"),
    pytest.param("a.tsv", b"PAR1\tORC\tsentence\tlabel\n1\t2\tbad\t0\n3\t4\tgood\t1\n", ["bad", "good"], id="tsv: columns named like formats"),
    pytest.param("a.csv.gz", gzip.compress(b"sentence,label\nbad,0\ngood,1\n"), ["bad", "good"], id="csv.gz"),
    pytest.param("A.CSV.GZ", gzip.compress(b"sentence,label\nbad,0\ngood,1\n"), ["bad", "good"], id="capital letters"),
    pytest.param("a.tsv.gz", gzip.compress(b"sentence\tlabel\nbad\t0\ngood\t1\n"), ["bad", "good"], id="tsv.gz"),
    pytest.param("a.jsonl", b'{"sentence": "bad\\n\\"x\\"", "label": 0}\n{"label": "positive", "sentence": "good"}\n', ['bad\n"x"', "good"], id="jsonl: names and numbers mixed"),
    pytest.param("a.jsonl.gz", gzip.compress(b'{"sentence": "bad", "label": 0.0}\r\n{"sentence": "good", "label": "1"}\r\n'), ["bad", "good"], id="jsonl.gz"),
]  # fmt: skip


@pytest.mark.parametrize("name, content, want", GOOD_FILES)
def test_a_file_is_read_as_written(tmp_path: Path, name: str, content: bytes, want: list[str]):
    (tmp_path / name).write_bytes(content)

    split = read_train(tmp_path, name)

    assert texts_of(split) == want
    assert split.targets == [0, 1]


@pytest.mark.parametrize(
    "cells, labels, want",
    [
        pytest.param(["0", "1"], LABELS, [0, 1], id="numbers"),
        pytest.param(["0.0", "1.0"], LABELS, [0, 1], id="decimals, as pandas writes columns with gaps"),
        pytest.param(["negative", "1", "1.0", "positive"], LABELS, [0, 1, 1, 1], id="mixed"),
        pytest.param(["Negative", "POSITIVE"], LABELS, [0, 1], id="another case"),
        pytest.param(["positive", "negative"], ["positive", "negative"], [0, 1], id="order of the task"),
        pytest.param(["1", "2", "1.0"], ["1", "2"], [0, 1, 0], id="labels that are numbers are names"),
        pytest.param(["2", "10", "2"], ["10", "2"], [1, 0, 1], id="numeric names in any order"),
        pytest.param(["no", "yes"], ["no", "yes"], [0, 1], id="words YAML would read as booleans"),
        pytest.param(["fa\u0302che\u0301", "calme"], ["f\u00e2ch\u00e9", "calme"], [0, 1], id="decomposed in the file"),
        pytest.param(["f\u00e2ch\u00e9", "calme"], ["fa\u0302che\u0301", "calme"], [0, 1], id="decomposed in the task"),
        pytest.param(["F\u00c2CHE\u0301", "calme"], ["f\u00e2ch\u00e9", "calme"], [0, 1], id="another form and case"),
    ],
)
def test_labels_are_names_or_numbers(tmp_path: Path, cells: list[str], labels: list[str], want: list[int]):
    (tmp_path / "a.tsv").write_text("sentence\tlabel\n" + "".join(f"text {c}\t{c}\n" for c in cells))

    assert read_train(tmp_path, "a.tsv", labels=labels).targets == want


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


def _datasets(path: Path) -> None:
    label = datasets.ClassLabel(names=["positive", "negative"])
    features = datasets.Features({"sentence": datasets.Value("string"), "label": label})
    datasets.Dataset.from_dict({"sentence": ["bad", "good"], "label": [1, 0]}, features=features).to_parquet(path)


@pytest.mark.parametrize("write", [_pandas, _polars, _category, _large, _decimal, _datasets])
def test_parquet_of_every_writer_is_read(tmp_path: Path, write: Any):
    write(tmp_path / "a.parquet")

    split = read_train(tmp_path, "a.parquet")

    assert texts_of(split) == ["bad", "good"]
    assert split.targets == [0, 1]


def test_two_text_columns_are_a_pair(tmp_path: Path):
    (tmp_path / "a.csv").write_text("a,label,b\nx,0,y\nz,1,w\n")

    assert read_train(tmp_path, "a.csv", text=["b", "a"]).texts == [("y", "x"), ("w", "z")]


def test_a_column_is_found_in_any_unicode_form(tmp_path: Path):
    column = "\u00e9motion"
    (tmp_path / "a.tsv").write_text(unicodedata.normalize("NFD", f"sentence\t{column}\n") + "bad\t0\ngood\t1\n")

    assert read_train(tmp_path, "a.tsv", label=column).targets == [0, 1]


def test_a_local_file_is_found_in_any_unicode_form_of_its_name(tmp_path: Path):
    name = "donn\u00e9es.tsv"
    (tmp_path / unicodedata.normalize("NFD", name)).write_bytes(HEADER + b"bad\t0\ngood\t1\n")

    assert read_train(tmp_path, name).targets == [0, 1]


def test_rows_are_keyed_by_content_not_by_place(tmp_path: Path):
    (tmp_path / "a.csv").write_text("a,label,b\nab,0,c\na,1,bc\nab,1,c\n")

    keys = read_train(tmp_path, "a.csv", text=["a", "b"]).keys

    assert keys[0] == keys[2] != keys[1]


BAD_FILES = [
    pytest.param("a.tsv", HEADER + b"bad\t0\ngo\tod\t1\n", "{f}:3: 3 cells, the header has 2; remove tabs within cells: a tsv cell cannot contain one, even in quotation marks", id="tsv: a tab too many"),
    pytest.param("a.tsv", HEADER + b"bad\t0\ngood\n", "{f}:3: 1 cell, the header has 2; add the missing ones (an empty cell needs its tab too); a tsv cell cannot contain a line break", id="tsv: a cell too few"),
    pytest.param("a.tsv", HEADER + b"bad\t0\n\t1\n", '{f}:3, column "sentence": the cell is empty; fill it or remove the row', id="tsv: empty text"),
    pytest.param("a.tsv", HEADER + b"bad\t0\ngood\t\n", '{f}:3, column "label": the cell is empty; fill it or remove the row', id="tsv: empty label"),
    pytest.param("a.tsv", HEADER + b"bad\t0\ngood\tpositiv\n", '{f}:3, column "label": got "positiv", expected one of negative, positive, or a number from 0 to 1 in that order; correct the row or spec.task.labels', id="label outside"),
    pytest.param("a.tsv", HEADER + "bad\t0\ngood\tposi\u200btive\n".encode(), '{f}:3, column "label": got "posi\u200btive", expected one of negative, positive, or a number from 0 to 1 in that order (\'posi\\u200btive\' looks like \'positive\', but its characters differ); correct the row or spec.task.labels', id="label with an invisible character"),
    pytest.param("a.tsv", HEADER + b"bad\t0\ngood\t2\n", '{f}:3, column "label": got "2", expected one of negative, positive, or a number from 0 to 1 in that order; correct the row or spec.task.labels', id="number outside"),
    pytest.param("a.tsv", HEADER + b"bad\t0\ngood\t0.5\n", '{f}:3, column "label": got "0.5", expected one of negative, positive, or a number from 0 to 1 in that order; correct the row or spec.task.labels', id="no whole number"),
    pytest.param("a.tsv", HEADER + b"bad\t-1\n", '{f}:2, column "label": got "-1", expected one of negative, positive, or a number from 0 to 1 in that order; correct the row or spec.task.labels', id="hidden labels of GLUE"),
    pytest.param("a.tsv", b"sentence\tlabels\nbad\t0\n", '{f}:1: no column "label" (spec.task.dataset.label); did you mean labels?', id="missing column"),
    pytest.param("a.tsv", b"sentence\tlabel\tlabel\nbad\t0\t1\n", '{f}:1: 2 columns are named "label"; rename all but one', id="two columns of one name"),
    pytest.param("a.tsv", b"sentence,label\nbad,0\n", "{f}:1: no column \"sentence\" (spec.task.dataset.text); the only column is 'sentence,label'; let the file's name end in .csv", id="csv named tsv"),
    pytest.param("a.csv", b"sentence\tlabel\nbad\t0\n", "{f}:1: no column \"sentence\" (spec.task.dataset.text); the only column is 'sentence\\tlabel'; let the file's name end in .tsv", id="tsv named csv"),
    pytest.param("a.csv", b"sentence;label\nbad;0\n", "{f}:1: no column \"sentence\" (spec.task.dataset.text); the only column is 'sentence;label'; separate the cells with commas (csv) or tabs (tsv), not with ';'", id="semicolons"),
    pytest.param("a.tsv", HEADER + b"good\t1\nb\xe9ant\t0\n", "{f}:3: byte 0xe9 is not UTF-8; convert the file to UTF-8", id="Latin-1"),
    pytest.param("a.tsv", HEADER, "spec.task.dataset.splits.train: {f} has no rows; expected at least one", id="header alone"),
    pytest.param("a.tsv", b"", '{f}: the file is empty; expected rows with "sentence", "label"', id="empty file"),
    pytest.param("a.tsv", b"\xef\xbb\xbf", '{f}: the file is empty; expected rows with "sentence", "label"', id="tsv: byte order mark alone"),
    pytest.param("a.tsv", b"\xef\xbb\xbf\r\n\r\n", '{f}: the file is empty; expected rows with "sentence", "label"', id="tsv: byte order mark and blank lines"),
    pytest.param("a.csv", b"\xef\xbb\xbf\n\n", '{f}: the file is empty; expected rows with "sentence", "label"', id="csv: byte order mark and blank lines"),
    pytest.param("a.jsonl", b"\xef\xbb\xbf", '{f}: the file is empty; expected rows with "sentence", "label"', id="jsonl: byte order mark alone"),
    pytest.param("a.tsv", HEADER + b"good\t1\nfine\t1\n", 'spec.task.dataset.splits.train: no row of {f} is of class "negative"; add such rows or remove the class from spec.task.labels', id="a class missing in train"),
    pytest.param("a.csv", b'sentence,label\ngood,1\n"bad film,0\nfine,1\n', "{f}:3: unexpected end of data; put a cell with a quotation mark, comma or line break in quotation marks, and double the marks within it (\"\")", id="csv: a mark never closed"),
    pytest.param("a.csv", b'sentence,label\n"bad" film,0\n', "{f}:2: ',' expected after '\"'; put a cell with a quotation mark, comma or line break in quotation marks, and double the marks within it (\"\")", id="csv: text after a mark"),
    pytest.param("a.csv", b"sentence,label\nbad, really,0\n", "{f}:2: 3 cells, the header has 2; put a cell with a comma in quotation marks", id="csv: bare comma"),
    pytest.param("a.csv", b"sentence,label\nbad\n", "{f}:2: 1 cell, the header has 2; add the missing ones (an empty cell needs its comma too), and put a line break in quotation marks", id="csv: a cell too few"),
    pytest.param("a.csv", b"\nsentence,label\nbad,0\ngood,1\n", "{f}:1: the line is blank, and rows follow; remove it", id="csv: blank first line"),
    pytest.param("a.csv", b"sentence,label\nbad,0\n\ngood,1\n", "{f}:3: the line is blank, and rows follow; remove it", id="csv: blank line between"),
    pytest.param("a.csv", b'sentence,label\n"a\rb\rc",0\ngood,1\n\nfine,1\n', "{f}:6: the line is blank, and rows follow; remove it", id="csv: blank line after bare CRs within a cell"),
    pytest.param("a.jsonl", b'{"sentence": "fine", "label": 1}\n{"sentence": "cut \\ud83d", "label": 0}\n', '{f}:2, column "sentence": character 5 is \\ud83d, half of a surrogate pair; correct the text, or the program that cut it', id="jsonl: half an emoji"),
    pytest.param("a.csv.gz", gzip.compress(b"sentence,label\nbad,0\n" * 99)[:-12], "{f}: the file is cut short; copy it again", id="gz cut short"),
    pytest.param("a.jsonl", b'{"sentence": "bad", "label": 0}\n{"sentence": "good"}\n', '{f}:2: no column "label" (spec.task.dataset.label); expected one of sentence', id="jsonl: key missing"),
    pytest.param("a.jsonl", b'{}\n{"sentence": "bad", "label": 0}\n', '{f}:1: no column "sentence" (spec.task.dataset.text); the object is empty; fill it or remove the line', id="jsonl: an empty object first"),
    pytest.param("a.jsonl", b'{"sentence": "bad", "label": 0}\n{}\n', '{f}:2: no column "sentence" (spec.task.dataset.text); the object is empty; fill it or remove the line', id="jsonl: an empty object later"),
    pytest.param("a.jsonl", b'{"sentence": "bad", "label": 0}\n["good", 1]\n', '{f}:2: got ["good", 1], expected a JSON object; write one object per line', id="jsonl: a list"),
    pytest.param("a.jsonl", b'{"sentence": 5, "label": 0}\n', '{f}:1, column "sentence": got 5, expected text; convert it to text, or name another column', id="jsonl: text is a number"),
    pytest.param("a.jsonl", b'{"sentence": null, "label": 0}\n', '{f}:1, column "sentence": the cell is empty; fill it or remove the row', id="jsonl: null"),
    pytest.param("a.jsonl", b'{"sentence": "x", "label": true}\n', '{f}:1, column "label": got true, expected one of negative, positive, or a number from 0 to 1 in that order; labels are texts or whole numbers: write one of these, or name two classes true and false; correct the row or spec.task.labels', id="jsonl: true is no class"),
    pytest.param("a.jsonl", b'{"sentence": "x", "label": [1]}\n', '{f}:1, column "label": got [1], expected a class name or number; correct the row or spec.task.labels', id="jsonl: label is a list"),
    pytest.param("a.jsonl", b'{"sentence": "x", "label": 0, "label": 1}\n', '{f}:1: not a JSON object (the key "label" occurs twice); write one object per line', id="jsonl: key twice"),
    pytest.param("a.jsonl", b'{"sentence": "x", "label": 0},\n', '{f}:1: not a JSON object (a comma follows it); remove the comma', id="jsonl: a comma after the object"),
    pytest.param("a.jsonl", b'{"sentence": "x", "label": 0}\n{"sentence": "y", "la', '{f}:2: not a JSON object (Unterminated string starting at: column 19); write one object per line', id="jsonl: cut short"),
    pytest.param("a.jsonl", b'{"sentence": ' + b"[" * 5000 + b"]" * 5000 + b"}\n", '{f}:1: not a JSON object (nested too deeply); write one flat object per line', id="jsonl: nested deeply"),
    pytest.param("a.jsonl", b'{"sentence": "x", "label": ' + b"9" * 5000 + b"}\n", '{f}:1: not a JSON object (Exceeds the limit (4300 digits) for integer string conversion: value has 5000 digits); write one object per line', id="jsonl: a huge number"),
    pytest.param("a.tsv", b"sentence \tlabel\nbad\t0\n", '{f}:1: no column "sentence" (spec.task.dataset.text), but "sentence "; remove the spaces', id="a space after the name of a column"),
    pytest.param("a.parquet", b"PAR1 not really", "{f}: the Parquet file is damaged (Parquet magic bytes not found in footer. Either the file is corrupted or this is not a parquet file.); copy it again", id="parquet cut short"),
    pytest.param("a.tsv", HEADER + b"bad\t0\ngo\0od\t1\n", "{f}:3: the line has a NUL character (byte 0x00), so the file is damaged or not UTF-8; copy it again, or convert it to UTF-8", id="tsv: NUL character"),
    pytest.param("a.csv", b"sentence,label\nbad,0\ngo\0od,1\n", "{f}:3: the line has a NUL character (byte 0x00), so the file is damaged or not UTF-8; copy it again, or convert it to UTF-8", id="csv: NUL character"),
    pytest.param("a.tsv", HEADER + b"bad\t0\n\ngood\t1\n", "{f}:3: the line is blank, and rows follow; remove it", id="tsv: blank line between"),
    pytest.param("a.txt", b"bad 0\n", "{f}: unknown kind of file; expected csv, tsv or jsonl (also as .gz), or parquet", id="unknown kind"),
    pytest.param("a.json", b"[]", "{f}: unknown kind of file; expected csv, tsv or jsonl (also as .gz), or parquet; write one object per line, into a file whose name ends in .jsonl", id="json"),
    pytest.param("a.xlsx", b"PK", "{f}: unknown kind of file; expected csv, tsv or jsonl (also as .gz), or parquet; export it as CSV in UTF-8", id="xlsx"),
    pytest.param("a.parquet.gz", b"", "{f}: unknown kind of file; expected csv, tsv or jsonl (also as .gz), or parquet; decompress it", id="parquet in gz"),
    pytest.param("a.jsonl", b"{'sentence': 'bad', 'label': 0}\n", "{f}:1: not a JSON object (Expecting property name enclosed in double quotes: column 2); write it with json.dumps, which uses double quotes", id="jsonl: as Python prints it"),
]  # fmt: skip


@pytest.mark.parametrize("name, content, want", BAD_FILES)
def test_what_is_ambiguous_or_damaged_is_refused(tmp_path: Path, name: str, content: bytes, want: str):
    (tmp_path / name).write_bytes(content)

    with pytest.raises(DataInvalid) as failure:
        read_train(tmp_path, name)

    assert str(failure.value) == want.format(f=f"file://{tmp_path}/{name}")


def test_a_damaged_gzip_file_is_refused(tmp_path: Path):
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"sentence,label\nbad,0\n")[:-8] + b"12345678")

    with pytest.raises(DataInvalid, match=r"a\.csv\.gz: the gzip file is damaged \(CRC check failed"):
        read_train(tmp_path, "a.csv.gz")


def test_a_missing_file_is_named_with_what_is_there(tmp_path: Path):
    (tmp_path / "train.tsv").write_bytes(HEADER + b"bad\t0\ngood\t1\n")

    with pytest.raises(DataInvalid) as failure:
        read_train(tmp_path, "train.tsv", validation="dev.tsv")

    want = f"spec.task.dataset.splits.validation: file://{tmp_path}/dev.tsv does not exist; the folder has train.tsv"
    assert str(failure.value) == want


@pytest.mark.parametrize(
    "make, want",
    [
        (lambda path: path.mkdir(), "is a folder, expected a file; join the files in it, and name the result"),
        (
            lambda path: datasets.Dataset.from_dict({"sentence": ["a"], "label": [0]}).save_to_disk(path),
            "is a folder, expected a file; write the data set with load_from_disk(...) and to_parquet(...), and name "
            "the Parquet file",
        ),
        (lambda path: path.symlink_to("gone"), "is a link to a file that does not exist; copy the file itself"),
    ],
)
def test_what_is_no_file_is_not_called_missing(tmp_path: Path, make: Callable[[Path], None], want: str):
    make(tmp_path / "train.tsv")

    with pytest.raises(DataInvalid) as failure:
        read_train(tmp_path, "train.tsv")

    assert str(failure.value) == f"spec.task.dataset.splits.train: file://{tmp_path}/train.tsv {want}"


def test_null_in_parquet_is_named_by_row(tmp_path: Path):
    pandas.DataFrame({"sentence": ["bad", None], "label": [0, 1]}).to_parquet(tmp_path / "a.parquet")

    with pytest.raises(DataInvalid, match=r'a\.parquet, row 2, column "sentence": the cell is empty'):
        read_train(tmp_path, "a.parquet")


@pytest.mark.parametrize(
    "rows, want",
    [
        pytest.param(b"", "{f} has no rows; expected at least one", id="no rows"),
        pytest.param(
            b"good\t1\nfine\t1\n",
            'every row of {f} is of class "positive", so no model can be distinguished from chance; add rows of the other classes',
            id="a single class",
        ),
    ],
)
def test_validation_with_fewer_than_two_classes_is_refused(tmp_path: Path, rows: bytes, want: str):
    (tmp_path / "train.tsv").write_bytes(HEADER + b"bad\t0\ngood\t1\n")
    (tmp_path / "dev.tsv").write_bytes(HEADER + rows)

    with pytest.raises(DataInvalid) as failure:
        read_train(tmp_path, "train.tsv", validation="dev.tsv")

    want = want.format(f=f"file://{tmp_path}/dev.tsv")
    assert str(failure.value) == f"spec.task.dataset.splits.validation: {want}"


@pytest.mark.parametrize(
    "content, want",
    [
        pytest.param(b"sentence\nnew\n", '{f}:1: no column "label" (spec.task.dataset.label); expected one of sentence', id="no column"),
        pytest.param(HEADER + b"new\t\n", '{f}:2, column "label": the cell is empty; fill it or remove the row', id="no label"),
        pytest.param(
            HEADER + b"new\t-1\n",
            '{f}:2, column "label": got "-1", expected one of negative, positive, or a number from 0 to 1 in that order; '
            "correct the row or spec.task.labels",
            id="hidden labels, as in GLUE",
        ),
    ],
)  # fmt: skip
def test_of_a_test_split_without_labels_the_message_says_that_it_can_be_left_out(
    tmp_path: Path, content: bytes, want: str
):
    (tmp_path / "train.tsv").write_bytes(HEADER + b"bad\t0\ngood\t1\n")
    (tmp_path / "test.tsv").write_bytes(content)

    with pytest.raises(DataInvalid) as failure:
        read_all(tmp_path, "train.tsv", test="test.tsv")

    more = "; if no row has one, remove spec.task.dataset.splits.test"
    assert str(failure.value) == want.format(f=f"file://{tmp_path}/test.tsv") + more


def test_one_bad_label_among_others_of_test_is_that_of_its_row(tmp_path: Path):
    (tmp_path / "train.tsv").write_bytes(HEADER + b"bad\t0\ngood\t1\n")
    (tmp_path / "test.tsv").write_bytes(HEADER + b"fine\t1\nnew\t\n")

    with pytest.raises(
        DataInvalid, match=r'test\.tsv:3, column "label": the cell is empty; fill it or remove the row$'
    ):
        read_all(tmp_path, "train.tsv", test="test.tsv")


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
        DataInvalid, match=rf"^file://{tmp_path}/a\.parquet: the Parquet file is damaged \(.*; copy it again$"
    ):
        read_train(tmp_path, "a.parquet")


def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path):
    """Uses a folder instead of a file without read permission: root may read every file."""
    (tmp_path / "a.csv").mkdir()

    with pytest.raises(DataInvalid) as failure:
        read_table(tmp_path / "a.csv", ["sentence"], name="s3://b/a.csv", warnings=StageWarnings())

    want = "s3://b/a.csv cannot be read (Is a directory); name a place that the trainer's user may read"
    assert str(failure.value) == want


def test_json_texts_are_read_unchanged(tmp_path: Path):
    rows = [{"sentence": f'line {i} \u00e9 \t "', "label": i % 2} for i in range(50)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    assert texts_of(read_train(tmp_path, "a.jsonl")) == [row["sentence"] for row in rows]
