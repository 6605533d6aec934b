"""Data files whose content does not match their name: the message says what they are and what to do."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import sqlite3
import tarfile
import zipfile
from pathlib import Path

import pyarrow
import pyarrow.feather
import pyarrow.parquet
import pytest

from distillchain_trainer.errors import DataInvalid
from trainer.data_files import HEADER, read_train

TSV = HEADER + b"bad\t0\ngood\t1\n"
CSV = TSV.replace(b"\t", b",")
JSONL = b'{"sentence": "bad", "label": 0}\n{"sentence": "good", "label": 1}\n'
AGAIN = "download the file again and look at its first lines"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"


def zipped(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, TSV)
    return buffer.getvalue()


def tarred() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        member = tarfile.TarInfo("a.tsv")
        member.size = len(TSV)
        archive.addfile(member, io.BytesIO(TSV))
    return buffer.getvalue()


def parquet() -> bytes:
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"sentence": ["bad", "good"], "label": [0, 1]}), buffer)
    return buffer.getvalue()


def feather() -> bytes:
    buffer = io.BytesIO()
    pyarrow.feather.write_feather(pyarrow.table({"sentence": ["bad", "good"], "label": [0, 1]}), buffer)
    return buffer.getvalue()


def zstd(content: bytes) -> bytes:
    with io.BytesIO() as buffer, pyarrow.CompressedOutputStream(buffer, "zstd") as stream:
        stream.write(content)
        stream.flush()
        return buffer.getvalue()


def sqlite() -> bytes:
    with sqlite3.connect(":memory:") as database:
        database.execute("create table rows (sentence text)")
        content = database.serialize()
    database.close()
    return content


OTHER_CONTENT = [
    pytest.param("a.tsv", gzip.compress(TSV), "the name ends in .tsv, but the content is gzip; decompress it, or let its name end in .tsv.gz", id="gzip named tsv"),
    pytest.param("a.csv", gzip.compress(CSV), "but the content is gzip; decompress it, or let its name end in .csv.gz", id="gzip named csv"),
    pytest.param("a.jsonl", gzip.compress(JSONL), "but the content is gzip; decompress it, or let its name end in .jsonl.gz", id="gzip named jsonl"),
    pytest.param("a.parquet", gzip.compress(parquet()), "but the content is gzip; decompress it", id="gzip named parquet"),
    pytest.param("a.tsv.gz", gzip.compress(gzip.compress(TSV)), "but the content is gzip; decompress it once more", id="gzip twice"),
    pytest.param("a.tsv.gz", TSV, "the name ends in .gz, but the content is not compressed; remove .gz from its name, or compress it with gzip", id="tsv named gz"),
    pytest.param("a.tsv.gz", LFS, "but the content is a Git LFS pointer, not the data; run `git lfs pull` and copy the file again", id="LFS pointer named gz"),
    pytest.param("a.tsv.gz", zipped("a.tsv"), "the name ends in .gz, but the content is a zip archive; unpack it", id="zip named gz"),
    pytest.param("a.tsv.gz", gzip.compress(tarred()), "but the content is a tar archive; unpack it", id="tar named gz"),
    pytest.param("a.csv", zipped("a.csv"), "but the content is a zip archive; unpack it", id="zip"),
    pytest.param("a.csv", zipped("[Content_Types].xml", "xl/workbook.xml"), "but the content is an Excel file (xlsx); export it as CSV in UTF-8", id="xlsx"),
    pytest.param("a.csv", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(504), "but the content is an Excel or Office file; export it as CSV in UTF-8", id="xls"),
    pytest.param("a.tsv", bz2.compress(TSV), "but the content is bzip2; decompress it", id="bzip2"),
    pytest.param("a.tsv", lzma.compress(TSV), "but the content is xz; decompress it", id="xz"),
    pytest.param("a.jsonl", zstd(JSONL), "but the content is zstd; decompress it", id="zstd"),
    pytest.param("a.tsv", parquet(), "but the content is Parquet; let its name end in .parquet", id="parquet named tsv"),
    pytest.param("a.jsonl", feather(), "but the content is an Arrow file; convert it to Parquet", id="arrow named jsonl"),
    pytest.param("a.parquet", feather(), "but the content is an Arrow file; convert it to Parquet", id="arrow named parquet"),
    pytest.param("a.csv", b"FEA1" + bytes(80), "but the content is a Feather file; convert it to Parquet", id="feather of the first version"),
    pytest.param("a.csv", zipped(), f"but the content is an empty zip archive; {AGAIN}", id="empty zip"),
    pytest.param("a.csv", b"\1\2\3" + bytes(90), "but the content is binary data of an unknown kind; export it as CSV in UTF-8", id="zeros without a pattern"),
    pytest.param("a.csv", b"/annex/objects/SHA256E-s100--4d7a.csv\n", "but the content is a git-annex pointer, not the data; run `git annex get` and copy the file again", id="git-annex pointer"),
    pytest.param("a.csv", sqlite(), "but the content is an SQLite database; export it as CSV in UTF-8", id="sqlite"),
    pytest.param("a.parquet", CSV, "the name ends in .parquet, but the content is text that begins with 'sentence,label'; let the name end in .csv, .tsv or .jsonl, or convert it to Parquet", id="csv named parquet"),
    pytest.param("a.parquet", b"", "but the content is empty; let the name end in .csv, .tsv or .jsonl, or convert it to Parquet", id="empty parquet"),
    *(pytest.param(f"a{ending}", LFS, "but the content is a Git LFS pointer, not the data; run `git lfs pull` and copy the file again", id=f"LFS pointer named {ending}") for ending in (".csv", ".tsv", ".jsonl", ".parquet")),
    pytest.param("a.tsv", TSV.decode().encode("utf-16"), "but the content is text in UTF-16; convert it to UTF-8", id="UTF-16"),
    pytest.param("a.csv", CSV.decode().encode("utf-16-be"), "but the content is text in UTF-16 or UTF-32 without a byte order mark; convert it to UTF-8", id="UTF-16 without a mark"),
    pytest.param("a.csv", CSV.decode().encode("utf-32-le"), "but the content is text in UTF-16 or UTF-32 without a byte order mark; convert it to UTF-8", id="UTF-32 without a mark"),
    pytest.param("a.tsv", TSV.decode().encode("utf-32"), "but the content is text in UTF-32; convert it to UTF-8", id="UTF-32"),
    pytest.param("a.csv", b"\n<!DOCTYPE html>\n<html><body>404</body></html>", "but the content is an HTML page, probably an error page of a server; download the file again and look at its first lines", id="HTML"),
    pytest.param("a.parquet", b"<html>login</html>", "but the content is an HTML page, probably an error page of a server; download the file again and look at its first lines", id="HTML named parquet"),
    pytest.param("a.tsv", b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "but the content is an XML document, probably an error message of a server; download the file again and look at its first lines", id="error of S3"),
    pytest.param("a.jsonl", b'[{"sentence": "bad", "label": 0},\n {"sentence": "good", "label": 1}]', "but the content is a JSON array; write one object per line, for example with `jq -c '.[]'`", id="JSON array"),
    pytest.param("a.jsonl", b'{\n  "sentence": "bad",\n  "label": 0\n}\n', "but the content is JSON that spans several lines; write one object per line, for example with `jq -c .`", id="indented JSON"),
    pytest.param("a.tsv", JSONL, "but the content is JSON; let its name end in .jsonl", id="jsonl named tsv"),
]  # fmt: skip


@pytest.mark.parametrize("name, content, want", OTHER_CONTENT)
def test_content_that_does_not_match_the_name_is_named_with_the_remedy(
    tmp_path: Path, name: str, content: bytes, want: str
):
    (tmp_path / name).write_bytes(content)

    with pytest.raises(DataInvalid) as failure:
        read_train(tmp_path, name)

    message = str(failure.value)
    assert message.startswith(f"file://{tmp_path}/{name}: the name ends in ")
    assert message.endswith(want)


@pytest.mark.parametrize("end", [b"", b"\n"])
@pytest.mark.parametrize("name, content", [("a.tsv", TSV), ("a.jsonl", JSONL)])
def test_lines_that_end_in_cr_alone_are_named(tmp_path: Path, name: str, content: bytes, end: bytes):
    (tmp_path / name).write_bytes(content.replace(b"\n", b"\r") + end)

    with pytest.raises(DataInvalid) as failure:
        read_train(tmp_path, name)

    assert str(failure.value) == (
        f"file://{tmp_path}/{name}: its lines end in CR alone, as on old Macs; convert the line ends to LF, for "
        "example with `tr '\\r' '\\n'`"
    )


NEWS = ["World", "Sci/Tech"]
WITHOUT_HEADER = [
    pytest.param("a.tsv", "Sci/Tech\tp2pnet.net News\nWorld\tVote\n", "(Sci/Tech, p2pnet.net News): add a first line with the names of the 2 columns, such as text<TAB>label", id="class name"),
    pytest.param("a.tsv", "3\tWall St.\n1\tOil\n", "(3, Wall St.): add a first line with the names of the 2 columns, such as text<TAB>label", id="number"),
    pytest.param("a.csv", '"Wall St. Bears Claw Back Into the Black","x"\n"Oil","y"\n', "(Wall St. Bears Claw Back Into the Black, x): add a first line with the names of the 2 columns, such as text,label", id="many words"),
    pytest.param("a.csv", f"{'x' * 50},b,c,d\n", f"({'x' * 40}..., b, c, ...): add a first line with the names of the 4 columns, such as text,label", id="long word"),
]  # fmt: skip


@pytest.mark.parametrize("name, content, want", WITHOUT_HEADER)
def test_a_missing_header_line_is_suspected_where_the_first_line_looks_like_a_row(
    tmp_path: Path, name: str, content: str, want: str
):
    (tmp_path / name).write_text(content)

    with pytest.raises(DataInvalid) as failure:
        read_train(tmp_path, name, text=["text"], labels=NEWS)

    head = f'file://{tmp_path}/{name}:1: no column "text" (spec.task.dataset.text); the first line looks like a row, not like a header '
    assert str(failure.value) == head + want


@pytest.mark.parametrize(
    "header, want",
    [
        pytest.param("txt\tlabel", "did you mean txt?", id="one column is there"),
        pytest.param("title\tclass", "expected one of class, title", id="other names"),
        pytest.param("sep=,", "the first line is the separator that Excel writes; remove it", id="separator of Excel"),
        pytest.param('"text"\t"label"', "the names of the columns are in quotation marks or spaces; remove them, or save the file as csv", id="quoted names"),
    ],
)  # fmt: skip
def test_a_header_with_other_names_is_not_taken_for_a_row(tmp_path: Path, header: str, want: str):
    (tmp_path / "a.tsv").write_text(f"{header}\nbad\t0\n")

    with pytest.raises(DataInvalid) as failure:
        read_train(tmp_path, "a.tsv", text=["text"])

    assert str(failure.value) == f'file://{tmp_path}/a.tsv:1: no column "text" (spec.task.dataset.text); {want}'
