"""What the data of a stage makes doubtful: refused where a split is not held out, else a warning with count and place."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from distillchain_trainer.errors import DataInvalid
from later import Later
from trainer.data_files import HEADER, read_all
from trainer.parts import sentences, write_tsv

datasets = Later("datasets")
TRAIN, DEV, TEST = (f"spec.task.dataset.splits.{name}" for name in ("train", "validation", "test"))


def write_splits(folder: Path, *, train: bytes, dev: bytes = b"fine\t1\npoor\t0\n", test: bytes = b"") -> None:
    (folder / "train.tsv").write_bytes(HEADER + train)
    (folder / "dev.tsv").write_bytes(HEADER + dev)
    if test:
        (folder / "test.tsv").write_bytes(HEADER + test)


def warnings_of(folder: Path, **parts: object) -> list[str]:
    return read_all(folder, "train.tsv", validation="dev.tsv", **parts)[1]


def test_distinct_splits_with_all_classes_give_no_warning(tmp_path: Path):
    write_splits(tmp_path, train=b"bad\t0\ngood\t1\n", test=b"dull\t0\nwarm\t1\n")

    assert warnings_of(tmp_path, test="test.tsv") == []


def test_a_class_without_rows_in_validation_or_test_is_a_warning(tmp_path: Path):
    write_splits(tmp_path, train=b"bad\t0\nso-so\t1\ngood\t2\n", dev=b"fine\t2\npoor\t0\n", test=b"warm\t2\n")

    found = warnings_of(tmp_path, test="test.tsv", labels=["negative", "neutral", "positive"])

    assert found == [
        f"{DEV}: no row of file://{tmp_path}/dev.tsv is of class neutral, so no metric covers it",
        f"{TEST}: no row of file://{tmp_path}/test.tsv is of class negative, neutral, so no metric covers it",
    ]


def test_texts_in_train_and_validation_are_counted_whatever_their_case_and_spaces(tmp_path: Path):
    write_splits(
        tmp_path,
        train=b"a good  film\t1\na bad film \t0\nonly here\t1\n",
        dev=b"new\t1\nA good film\t1\nnew too\t0\na bad film\t0\na bad film\t1\n",
        test=b"new\t0\nfresh\t1\n",
    )

    assert warnings_of(tmp_path, test="test.tsv") == [
        f"{DEV}: 3 of 5 validation texts are also in train, such as file://{tmp_path}/dev.tsv:3; metrics on them do not "
        "show how the model does on new texts",
        f"{TEST}: 1 of 2 test texts are also in validation, such as file://{tmp_path}/test.tsv:2; metrics on them do "
        "not show how the model does on new texts",
    ]


def test_pairs_overlap_only_as_pairs(tmp_path: Path):
    (tmp_path / "train.tsv").write_text("a\tb\tlabel\nx\ty\t0\nx\tz\t1\n")
    (tmp_path / "dev.tsv").write_text("a\tb\tlabel\ny\tx\t0\nx\tx\t1\nx\tz\t1\n")

    (warning,) = warnings_of(tmp_path, text=["a", "b"])

    assert warning.startswith(f"{DEV}: 1 of 3 validation texts are also in train, such as file://{tmp_path}/dev.tsv:4;")


def test_train_texts_with_two_labels_are_counted(tmp_path: Path):
    write_splits(tmp_path, train=b"odd\t0\nbad\t0\nOdd\t1\nodd\t1\ngood\t1\ngood\t1\n")

    assert warnings_of(tmp_path) == [
        f"{TRAIN}: 3 of 6 rows have a text that is also there with another label, such as file://{tmp_path}/train.tsv:2 "
        f"and file://{tmp_path}/train.tsv:4; correct their labels or remove them"
    ]


def test_a_few_texts_with_two_labels_in_a_large_set_are_no_warning(tmp_path: Path):
    rows = [(f"text {row}", row % 2) for row in range(3000)]
    write_tsv(tmp_path / "train.tsv", [*rows, ("text 0", 1)])
    write_tsv(tmp_path / "dev.tsv", sentences(4, 1))

    assert warnings_of(tmp_path) == []


def hard_link(folder: Path) -> str:
    (folder / "same.tsv").hardlink_to(folder / "train.tsv")
    return "same.tsv"


def symlink(folder: Path) -> str:
    (folder / "link.tsv").symlink_to(folder / "train.tsv")
    return "link.tsv"


def copy(folder: Path) -> str:
    shutil.copy(folder / "train.tsv", folder / "copy.tsv")
    return "copy.tsv"


def shuffled_as_another_format(folder: Path) -> str:
    rows = [line.split("\t") for line in (folder / "train.tsv").read_text().splitlines()[1:]]
    lines = [json.dumps({"sentence": text, "label": int(label)}) for text, label in reversed(rows)]
    (folder / "copy.jsonl").write_text("\n".join(lines))
    return "copy.jsonl"


@pytest.mark.parametrize("again", [hard_link, symlink, copy, shuffled_as_another_format])
@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_split_that_is_another_one_is_refused(tmp_path: Path, again, split: str):
    write_splits(tmp_path, train=b"bad\t0\ngood\t1\n")
    name = again(tmp_path)

    with pytest.raises(DataInvalid) as failure:
        read_all(tmp_path, "train.tsv", **{"validation": "dev.tsv", split: name})

    assert str(failure.value) == (
        f"spec.task.dataset.splits.{split}: file://{tmp_path}/{name} has the same texts as {TRAIN} "
        f"(file://{tmp_path}/train.tsv); a split must be held out, so name another file or split"
    )


def test_class_names_in_another_case_are_a_warning(tmp_path: Path):
    write_splits(tmp_path, train=b"bad\tNEGATIVE\nworse\tNEGATIVE\ngood\tPositive\n")

    assert warnings_of(tmp_path) == [
        f'file://{tmp_path}/train.tsv, column "label": class names differ from spec.task.labels in case: '
        "NEGATIVE for negative, Positive for positive"
    ]


def test_tsv_cells_that_are_quoted_as_in_csv_are_counted(tmp_path: Path):
    cells = b'"a ""good"" film"\t1\n"another ""good"" one"\t1\n'
    write_splits(tmp_path, train=b'bad\t0\n"plain" mark\t0\n' + cells)

    data, found = read_all(tmp_path, "train.tsv", validation="dev.tsv")

    assert data.train.texts[2] == ('"a ""good"" film"',)
    assert found == [
        f"file://{tmp_path}/train.tsv:4: 2 of 4 rows have cells that are quoted as in csv; their quotation marks are "
        "kept as part of the text; save the file as csv if they are not meant so"
    ]


def test_a_tsv_with_every_text_in_quotation_marks_is_a_warning(tmp_path: Path):
    write_splits(tmp_path, train=b'"bad"\t0\n"good"\t1\n')

    (warning,) = warnings_of(tmp_path)

    assert warning.startswith(f"file://{tmp_path}/train.tsv: every row has a cell in quotation marks; ")


def test_single_texts_in_quotation_marks_are_no_warning(tmp_path: Path):
    write_splits(tmp_path, train=b'"all"\t0\n"of" \'it\'\t1\nnone\t1\n')

    assert warnings_of(tmp_path) == []
