"""Converts the rated sentences of VADER to TSV files for train, validation and test.

Does not know about downloads or models. Source: sentences of movie reviews (Pang & Lee) and of Amazon product reviews
(Hu & Liu), each rated by 15 people or more from -4 (extremely negative) to +4 (extremely positive):

  Hutto, C.J. & Gilbert, E.E. (2014). VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social Media
  Text. Eighth International Conference on Weblogs and Social Media (ICWSM-14). Ann Arbor, MI, June 2014.
"""

from __future__ import annotations

import hashlib
import html
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from errors import SourceError

Split = Literal["train", "validation", "test"]
Label = Literal["negative", "positive"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
LABELS: tuple[Label, ...] = ("negative", "positive")

# A sentence whose mean rating is closer to 0 than this is dropped, because its sign is uncertain: with 15 to 20 ratings
# and a standard deviation of about 1.5, the standard error of the mean is 0.34 to 0.39, a third of 1.0.
NEUTRAL_BELOW = 1.0
# In percent. These are about 1,100 sentences each, so an accuracy of 0.85 has a 95 % interval of +-2 points.
VALIDATION_PERCENT = 10
TEST_PERCENT = 10


@dataclass(frozen=True, slots=True)
class Rated:
    """One sentence of the source; `mean_rating` is between -4 and +4, `key` the id in its file."""

    sentence: str
    mean_rating: float
    key: str = ""


@dataclass(frozen=True, slots=True)
class Example:
    sentence: str
    label: Label


@dataclass(frozen=True, slots=True)
class Selection:
    """The sentences of each split, and how many were left out for which reason."""

    splits: dict[Split, list[Example]]
    near_neutral: int
    repeated: int
    contradicted: int


def parse_ground_truth(data: bytes, name: str) -> list[Rated]:
    """The sentences of one `*_GroundTruth.txt`: lines of id, mean rating and text, separated by tabs; UTF-8, CRLF.

    Quotation marks are literal.

    Raises: SourceError with file and line when the bytes are not UTF-8, a line does not have three cells, or a rating
        is not a number from -4 to 4.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise SourceError(
            f"{name} line {line}: byte 0x{data[error.start]:02x} is not UTF-8; expected UTF-8 text"
        ) from error
    # Not splitlines(), which also splits at U+0085 and U+2028 inside a sentence.
    lines = text.removesuffix("\n").split("\n")
    return [parse_line(line.removesuffix("\r"), f"{name} line {number}") for number, line in enumerate(lines, start=1)]


def parse_line(line: str, where: str) -> Rated:
    cells = line.split("\t")
    if len(cells) != 3:
        raise SourceError(f"{where}: got {len(cells)} cells, expected 3 separated by tabs (id, mean rating, text)")
    try:
        rating = float(cells[1])
    except ValueError:
        rating = float("nan")
    if not -4.0 <= rating <= 4.0:
        raise SourceError(f"{where}: mean rating is {cells[1]!r}, expected a number from -4 to 4")
    sentence = clean(cells[2])
    if not sentence:
        raise SourceError(f"{where}: the text is empty, expected a sentence")
    return Rated(sentence, rating, cells[0])


def clean(text: str) -> str:
    """The sentence on one line: HTML entities resolved, also those escaped twice, and all white space as single spaces.

    Letters, case and quotation marks are unchanged.
    """
    return " ".join(html.unescape(html.unescape(text)).split())


def label_of(mean_rating: float, *, neutral_below: float = NEUTRAL_BELOW) -> Label | None:
    """The class by the sign of the rating; None for a near-neutral one."""
    if abs(mean_rating) < neutral_below:
        return None
    return "positive" if mean_rating > 0 else "negative"


def identity(sentence: str) -> str:
    """The letters and digits of a sentence: sentences that differ only in case, spacing or punctuation are the same."""
    return re.sub(r"[\W_]+", " ", sentence.casefold()).strip() or sentence


def split_of(sentence: str) -> Split:
    """The split of a sentence, by a hash of its text: it does not change when other sentences come or go."""
    percent = int.from_bytes(hashlib.sha256(identity(sentence).encode()).digest()[:8]) % 100
    if percent < VALIDATION_PERCENT:
        return "validation"
    return "test" if percent < VALIDATION_PERCENT + TEST_PERCENT else "train"


def select(rated: Iterable[Rated], *, neutral_below: float = NEUTRAL_BELOW) -> Selection:
    """Sentences with a clear sign, each once, in the order of the source, divided into splits.

    Equal sentences with opposite signs are all dropped; of other equal sentences the first is kept.
    """
    labelled = [(item.sentence, label_of(item.mean_rating, neutral_below=neutral_below)) for item in rated]
    clear = [Example(sentence, label) for sentence, label in labelled if label is not None]
    first: dict[str, Example] = {}
    contradicted: set[str] = set()
    for example in clear:
        if first.setdefault(identity(example.sentence), example).label != example.label:
            contradicted.add(identity(example.sentence))
    splits: dict[Split, list[Example]] = {split: [] for split in SPLITS}
    for key, example in first.items():
        if key not in contradicted:
            splits[split_of(example.sentence)].append(example)
    lost = sum(identity(example.sentence) in contradicted for example in clear)
    kept = sum(map(len, splits.values()))
    return Selection(splits, len(labelled) - len(clear), len(clear) - lost - kept, lost)


def to_tsv(examples: Iterable[Example]) -> bytes:
    """A table of sentence and label."""
    return table(("sentence", "label"), ((example.sentence, example.label) for example in examples))


def table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> bytes:
    """A header and one line per row, UTF-8, LF. Nothing is quoted or escaped: read it with quoting off.

    Raises: ValueError for a sentence, the first cell, with a tab or line break; `clean` removes them.
    """
    lines = ["\t".join(header)]
    for row in rows:
        if row[0] != clean(row[0]):
            raise ValueError(f"sentence {row[0]!r}: has white space that TSV cannot represent; apply clean() first")
        lines.append("\t".join(row))
    return ("\n".join(lines) + "\n").encode()


def balance(examples: Iterable[Example]) -> dict[Label, int]:
    """Number of examples of each class, in class order."""
    counts = Counter(example.label for example in examples)
    return {label: counts[label] for label in LABELS}
