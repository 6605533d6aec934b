"""Cuts texts about films into sentences for `task.transfer` of femto-best.yaml.

    python examples/sst2/sentences.py --into .sst2-sentences/sentences.txt.gz imdb/*.gz nltk/*.zip

Reads .txt and .tsv files, perhaps as .gz, with one text on each line (of a .tsv, the first column without its header),
and .zip archives of text files. Writes sentences of 4 to 32 words in the style of SST-2: lower case, "do n't" for
"don't". No sentence is written twice. Those in train, validation or test are left out later, when a stage reads them.
"""

from __future__ import annotations

import argparse
import gzip
import random
import re
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal, TextIO

SHORTEST_WORDS, LONGEST_WORDS = 4, 32
# After the mark that ends a sentence, at the line breaks of HTML, and where a space is missing ("good.But").
SENTENCE_END = re.compile(r"""(?<=[.!?])["')]*\s+|(?:<br\s*/?>\s*)+|(?<=[a-z][.!?])(?=[A-Z])""")
SEED = 0


def open_text(path: Path, mode: Literal["rt", "wt"]) -> TextIO:
    """A text file, compressed if its name ends in .gz."""
    if path.suffix == ".gz":
        return gzip.open(path, mode, encoding="utf-8")
    return path.open(mode, encoding="utf-8")


def texts_of(path: Path) -> Iterator[str]:
    """The texts of one file."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            for name in sorted(archive.namelist()):
                if not name.endswith("/") and "README" not in name:
                    # These archives are older than UTF-8; every byte is a character of Latin-1.
                    yield from archive.read(name).decode("latin-1").splitlines()
        return
    is_table = ".tsv" in path.suffixes
    with open_text(path, "rt") as lines:
        if is_table:
            next(lines)
        for line in lines:
            yield line.rstrip("\n").partition("\t")[0] if is_table else line


def sentences_of(text: str) -> Iterator[str]:
    """The sentences of one text that have a suitable length, in the style of SST-2."""
    for part in SENTENCE_END.split(text):
        sentence = re.sub(r"n't\b", " n't", " ".join(part.lower().split()))
        if SHORTEST_WORDS <= len(sentence.split()) <= LONGEST_WORDS:
            yield sentence


def distinct(sentences: Iterable[str]) -> list[str]:
    """Every sentence once; punctuation and spaces make no difference."""
    found: dict[str, str] = {}
    for sentence in sentences:
        letters = re.sub(r"[^a-z0-9]", "", sentence)
        if letters:
            found.setdefault(letters, sentence)
    return list(found.values())


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, help="files with texts")
    parser.add_argument("--into", required=True, type=Path, help="the file to write, .txt or .txt.gz")
    options = parser.parse_args()
    found = distinct(sentence for path in options.files for text in texts_of(path) for sentence in sentences_of(text))
    # Shuffled, so that `transfer.rows` takes a sample of all files.
    random.Random(SEED).shuffle(found)
    options.into.parent.mkdir(parents=True, exist_ok=True)
    with open_text(options.into, "wt") as file:
        file.writelines(f"{sentence}\n" for sentence in found)
    print(f"{len(found)} sentences in {options.into}")


if __name__ == "__main__":
    main()
