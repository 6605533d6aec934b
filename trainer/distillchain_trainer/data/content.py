"""Recognises what a data file really holds by its first bytes, where this contradicts the file's name.

Knows no columns and no rows. Says what the content is and what to do about it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from distillchain_trainer.errors import DataInvalid

HEAD_BYTES = 1 << 16  # enough for every signature, for the header line and for some rows

EXPORT = "export it as CSV in UTF-8"
DECOMPRESS = "decompress it"
DOWNLOAD_AGAIN = "download the file again and look at its first lines"


@dataclass(frozen=True)
class Signature:
    """How a kind of file begins.

    Attributes:
        what: ends the sentence "the content is ...".
        remedy: an imperative.
    """

    start: bytes
    what: str
    remedy: str


# From https://en.wikipedia.org/wiki/List_of_file_signatures and the formats' own specifications.
SIGNATURES = (
    Signature(b"\x1f\x8b", "gzip", DECOMPRESS),
    Signature(b"\x28\xb5\x2f\xfd", "zstd", DECOMPRESS),
    Signature(b"\xfd7zXZ\x00", "xz", DECOMPRESS),
    Signature(b"BZh", "bzip2", DECOMPRESS),
    Signature(b"\x04\x22\x4d\x18", "lz4", DECOMPRESS),
    Signature(b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it"),
    Signature(b"Rar!\x1a", "a RAR archive", "unpack it"),
    Signature(b"PK\x03\x04", "a zip archive", "unpack it"),
    Signature(b"PK\x05\x06", "an empty zip archive", DOWNLOAD_AGAIN),
    Signature(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an Excel or Office file", EXPORT),
    Signature(b"PARE", "an encrypted Parquet file", "decrypt it"),
    Signature(b"PAR1", "Parquet", "let its name end in .parquet"),
    Signature(b"FEA1", "a Feather file", "convert it to Parquet"),
    Signature(b"ARROW1", "an Arrow file", "convert it to Parquet"),
    Signature(b"\xff\xff\xff\xff", "an Arrow stream", "convert it to Parquet"),
    Signature(b"ORC", "ORC", "convert it to Parquet"),
    Signature(b"Obj\x01", "Avro", "convert it to Parquet"),
    Signature(b"SQLite format 3\x00", "an SQLite database", EXPORT),
    Signature(b"\x89HDF\r\n", "HDF5", "convert it to Parquet"),
    Signature(b"\x93NUMPY", "a NumPy array", EXPORT),
    Signature(b"\x80\x02", "a Python pickle", EXPORT),
    Signature(b"\x80\x03", "a Python pickle", EXPORT),
    Signature(b"\x80\x04", "a Python pickle", EXPORT),
    Signature(b"\x80\x05", "a Python pickle", EXPORT),
    Signature(b"%PDF-", "a PDF document", EXPORT),
    # UTF-32 before UTF-16, whose byte order mark is the first half of the other.
    Signature(b"\xff\xfe\x00\x00", "text in UTF-32", "convert it to UTF-8"),
    Signature(b"\x00\x00\xfe\xff", "text in UTF-32", "convert it to UTF-8"),
    Signature(b"\xff\xfe", "text in UTF-16", "convert it to UTF-8"),
    Signature(b"\xfe\xff", "text in UTF-16", "convert it to UTF-8"),
)
TAR = (257, b"ustar")  # the one signature that is not at the start
BOM = b"\xef\xbb\xbf"


def check_content(head: bytes, name: str, *, ending: str, is_unpacked: bool = False) -> None:
    """Compares the first bytes of a file with the ending of its name.

    Args:
        head: the first HEAD_BYTES of the file, decompressed if it is a .gz.
        name: the file's name in messages.
        ending: .csv, .tsv, .jsonl or .parquet; for CoNLL whatever the name ends in, perhaps nothing.
        is_unpacked: whether `head` was decompressed.
    Raises: DataInvalid that names the content and the remedy.
    """
    if ending == ".parquet" and head.startswith(b"PAR1"):
        return
    binary = _recognise_binary(head)
    if binary is not None:
        what, remedy = binary.what, binary.remedy
        if what == "gzip":
            # A file.csv.gz may be compressed twice; a file.csv that is gzip may only lack the ending .gz.
            remedy = f"decompress it{' once more' if is_unpacked else _or_add_gz(ending)}"
        raise _other_content(name, what, ending, remedy)
    # A byte order mark of UTF-8 is allowed and says nothing about the kind of text.
    text = _recognise_text(head.removeprefix(BOM).lstrip(), ending)
    if text is not None:
        raise _other_content(name, text[0], ending, text[1])
    if ending == ".parquet":
        shown = head[:40].decode(errors="replace").splitlines()[0] if head.strip() else ""
        what = f"text that begins with {shown!r}" if shown else "empty"
        raise _other_content(name, what, ending, "let the name end in .csv, .tsv or .jsonl, or convert it to Parquet")
    # Last, because most binary files with as many zeros are recognised above.
    if _has_many_zeros(head):
        if not _is_wide(head):
            raise _other_content(name, "binary data of an unknown kind", ending, EXPORT)
        what = "text in UTF-16 or UTF-32 without a byte order mark"
        raise _other_content(name, what, ending, "convert it to UTF-8")


def check_compressed(head: bytes, name: str) -> None:
    """That a file whose name ends in .gz begins as gzip does. Raises: DataInvalid."""
    if head.startswith(b"\x1f\x8b"):
        return
    found = _recognise_binary(head)
    if found is not None:
        raise _other_content(name, found.what, ".gz", found.remedy)
    text = _recognise_text(head.removeprefix(BOM).lstrip(), ".gz")
    what, remedy = text or ("not compressed", "remove .gz from its name, or compress it with gzip")
    raise _other_content(name, what, ".gz", remedy)


def _other_content(name: str, what: str, ending: str, remedy: str) -> DataInvalid:
    contradiction = f"the name ends in {ending}, but the content is" if ending else "the content is"
    return DataInvalid(f"{name}: {contradiction} {what}; {remedy}")


def _or_add_gz(ending: str) -> str:
    return "" if ending == ".parquet" else f", or let its name end in {ending}.gz"


def _recognise_binary(head: bytes) -> Signature | None:
    found = next((signature for signature in SIGNATURES if head.startswith(signature.start)), None)
    if found is None:
        offset, mark = TAR
        return Signature(b"", "a tar archive", "unpack it") if head[offset:].startswith(mark) else None
    if found.start.isascii() and not re.search(rb"[\x00-\x08\x0e-\x1f]|[\x80-\xff]", head):
        return None  # a column may be called ORC or PAR1
    # An xlsx file is a zip archive with these names in it.
    if found.what == "a zip archive" and re.search(rb"\[Content_Types\]\.xml|xl/|_rels/", head):
        return Signature(found.start, "an Excel file (xlsx)", EXPORT)
    return found


def _recognise_text(start: bytes, ending: str) -> tuple[str, str] | None:
    """What a text file is, and the remedy; `start` begins with the first character that is not white space."""
    if start.startswith(b"version https://git-lfs.github.com/spec/"):
        return "a Git LFS pointer, not the data", "run `git lfs pull` and copy the file again"
    if re.match(rb"\S*/annex/objects/", start):
        return "a git-annex pointer, not the data", "run `git annex get` and copy the file again"
    if re.match(rb"<!doctype html|<html", start, re.IGNORECASE):
        return "an HTML page, probably an error page of a server", DOWNLOAD_AGAIN
    if start.startswith(b"<?xml"):
        return "an XML document, probably an error message of a server", DOWNLOAD_AGAIN
    if ending == ".jsonl" and start.startswith(b"["):
        return "a JSON array", "write one object per line, for example with `jq -c '.[]'`"
    if ending == ".jsonl" and re.match(rb"\{\s*?\n", start):
        return "JSON that spans several lines", "write one object per line, for example with `jq -c .`"
    if ending not in (".jsonl", ".parquet", ".gz") and re.match(rb'\{\s*"[^"]*"\s*:', start):
        return "JSON", "let its name end in .jsonl"
    return None


def _has_many_zeros(head: bytes) -> bool:
    return head.count(0) > len(head) // 4


def _is_wide(head: bytes) -> bool:
    """Whether the zeros are those of UTF-16 or UTF-32: of four bytes, one or two are almost never zero in them."""
    zeros = sorted(head[place::4].count(0) for place in range(4))
    return zeros[0] < 0.1 * zeros[-1]
