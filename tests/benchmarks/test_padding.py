"""The shares of padding that bench/padding.py reports."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from bench.padding import measure, padding_share, read_texts, teacher_share

pytestmark = pytest.mark.models


def lengths(*values: int) -> np.ndarray[tuple[int, ...], np.dtype[np.int32]]:
    return np.array(values, dtype=np.int32)


def test_padding_is_what_is_computed_beyond_the_texts():
    assert padding_share(lengths(1, 3), 6) == pytest.approx(1 / 3, abs=1e-4)


def test_a_pass_takes_the_longest_rows_first_within_both_bounds():
    # 4 + 3 in one pass of width 4, then 2 + 1 in one of width 2.
    assert teacher_share(lengths(1, 2, 3, 4), most_tokens=8, most_rows=64) == pytest.approx(1 - 10 / 12, abs=1e-4)
    assert teacher_share(lengths(1, 2, 3, 4), most_tokens=800, most_rows=64) == pytest.approx(1 - 10 / 16, abs=1e-4)
    assert teacher_share(lengths(1, 2, 3, 4), most_tokens=800, most_rows=1) == 0


def test_texts_of_one_length_are_padded_by_the_width_alone():
    found = measure(lengths(*[12] * 640), 32)

    assert (found["padded"], found["teacher_cpu"]) == (0, 0)
    # The longest text is a width of its own.
    assert found["bucketed"] == 0
    assert measure(lengths(*[12] * 639, 60), 32)["bucketed"] > 0.2


def test_files_are_read_by_their_endings(tmp_path: Path):
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"one two\nthree\n"))
    (tmp_path / "a.tsv").write_text("text\tlabel\none two\t1\n")
    (tmp_path / "a").write_text("one\tO\ntwo\tO\n\nthree\tO\n")

    assert list(read_texts(tmp_path / "a.txt.gz", is_conll=False)) == ["one two", "three"]
    assert list(read_texts(tmp_path / "a.tsv", is_conll=False)) == ["one two"]
    assert list(read_texts(tmp_path / "a", is_conll=True)) == ["one two", "three"]
