"""examples/sst2/sentences.py: from reviews to the sentences of femto-best.yaml."""

from __future__ import annotations

import gzip
import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def script(repository: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("film_sentences", repository / "examples/sst2/sentences.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "text, want",
    [
        ("I liked it a lot. Too short. The END of it, well!", ["i liked it a lot.", "the end of it, well!"]),
        ("We don't know what<br /><br />they wanted to say.", ["we do n't know what", "they wanted to say."]),
        (
            'She said "that is it." Nobody was quite convinced.',
            ['she said "that is it.', "nobody was quite convinced."],
        ),
        ("A space is missing here.But it is found.", ["a space is missing here.", "but it is found."]),
        ("word " * 33, []),
        ("word " * 32, ["word " * 31 + "word"]),
        ("", []),
    ],
)
def test_texts_are_cut_into_sentences_of_a_suitable_length(script: ModuleType, text: str, want: list[str]):
    assert list(script.sentences_of(text)) == want


def test_every_kind_of_file_is_read_and_no_sentence_comes_twice(repository: Path, tmp_path: Path):
    (tmp_path / "plain.txt").write_text("The first text of all. Its second part is here.\n")
    with gzip.open(tmp_path / "table.tsv.gz", "wt") as file:
        file.write("text\tlabel\nthe first text of all!\t1\nOnly the table has this.\t0\n")
    with zipfile.ZipFile(tmp_path / "archive.zip", "w") as archive:
        archive.writestr("pos/1.txt", "The archive has this line.\nand it has this one")
        archive.writestr("README", "nobody wants to read this")
    into = tmp_path / "new/sentences.txt.gz"

    files = [str(tmp_path / name) for name in ("plain.txt", "table.tsv.gz", "archive.zip")]
    done = subprocess.run(
        [sys.executable, repository / "examples/sst2/sentences.py", "--into", into, *files],
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stdout == f"5 sentences in {into}\n"
    with gzip.open(into, "rt") as lines:
        assert sorted(lines.read().splitlines()) == [
            "and it has this one",
            "its second part is here.",
            "only the table has this.",
            "the archive has this line.",
            "the first text of all.",
        ]
