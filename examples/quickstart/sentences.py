"""Turns the human-rated sentences of VADER into train, validation and test TSV files.

Knows the source's format and the rules of selection, nothing of downloads or models. Source: movie-review sentences
(rotten tomatoes snippets of Pang & Lee) and Amazon product-review sentences (of Hu & Liu), each rated by 20 people or
more from -4 (extremely negative) to +4 (extremely positive):

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

# A sentence whose mean rating lies nearer to 0 than this is dropped: there the raters themselves disagree about the
# sign (20 ratings with a spread of about 1.5 leave the mean uncertain by 0.34, so 1.0 is three times that).
NEUTRAL_BELOW = 1.0
# Shares in percent: about 1,100 sentences each, so that an accuracy near 0.85 is known to +-2 points (95 %).
VALIDATION_PERCENT = 10
TEST_PERCENT = 10


@dataclass(frozen=True, slots=True)
class Rated:
    """One sentence of the source; mean_rating from -4 to +4."""

    sentence: str
    mean_rating: float


@dataclass(frozen=True, slots=True)
class Example:
    sentence: str
    label: Label


@dataclass(frozen=True, slots=True)
class Selection:
    """What was kept, by split, and why the others were not."""

    splits: dict[Split, list[Example]]
    near_neutral: int
    repeated: int
    contradicted: int


def parse_ground_truth(data: bytes, name: str) -> list[Rated]:
    """The sentences of one `*_GroundTruth.txt`: lines of id, mean rating, text, parted by tabs; UTF-8 with CRLF.

    Raises: SourceError naming file and line when the bytes are not UTF-8, a line has not three cells, or a rating is no
        number from -4 to 4. A quotation mark is a character like any other.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise SourceError(
            f"{name} line {line}: byte 0x{data[error.start]:02x} is not UTF-8; expected UTF-8 text"
        ) from error
    # Not splitlines(): it would also cut at U+0085 or U+2028 inside a sentence.
    lines = text.removesuffix("\n").split("\n")
    return [parse_line(line.removesuffix("\r"), f"{name} line {number}") for number, line in enumerate(lines, start=1)]


def parse_line(line: str, where: str) -> Rated:
    cells = line.split("\t")
    if len(cells) != 3:
        raise SourceError(f"{where}: got {len(cells)} cells, expected 3 parted by tabs (id, mean rating, text)")
    try:
        rating = float(cells[1])
    except ValueError:
        rating = float("nan")
    if not -4.0 <= rating <= 4.0:
        raise SourceError(f"{where}: mean rating is {cells[1]!r}, expected a number from -4 to 4")
    sentence = clean(cells[2])
    if not sentence:
        raise SourceError(f"{where}: the text is empty, expected a sentence")
    return Rated(sentence, rating)


def clean(text: str) -> str:
    """The sentence on one line: HTML entities resolved (`&amp;`, and `&amp;#38;` which was escaped twice), every run of
    white space, tabs and line ends included, made one space. Letters, case and quotation marks stay as they are.
    """
    return " ".join(html.unescape(html.unescape(text)).split())


def label_of(mean_rating: float, *, neutral_below: float = NEUTRAL_BELOW) -> Label | None:
    """The sign of a rating as a class name; None for a near-neutral one."""
    if abs(mean_rating) < neutral_below:
        return None
    return "positive" if mean_rating > 0 else "negative"


def identity(sentence: str) -> str:
    """What makes two sentences the same one: their letters and digits, whatever the case, spacing and punctuation."""
    return re.sub(r"[\W_]+", " ", sentence.casefold()).strip() or sentence


def split_of(sentence: str) -> Split:
    """The split of a sentence, from nothing but its own words: it stays there whatever else is added or removed."""
    percent = int.from_bytes(hashlib.sha256(identity(sentence).encode()).digest()[:8]) % 100
    if percent < VALIDATION_PERCENT:
        return "validation"
    return "test" if percent < VALIDATION_PERCENT + TEST_PERCENT else "train"


def select(rated: Iterable[Rated], *, neutral_below: float = NEUTRAL_BELOW) -> Selection:
    """Sentences with a clear sign, each once, in the order of the source, parted by a hash of their words.

    Sentences that are the same and got opposite signs are all dropped; of others that are the same the first is kept.
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
    """A header and one line per example, UTF-8, LF. Nothing is quoted or escaped: read it with quoting off.

    Raises: ValueError for a sentence with a tab or a line end, which this format cannot hold (`clean` leaves none).
    """
    lines = ["sentence\tlabel"]
    for example in examples:
        if example.sentence != clean(example.sentence):
            raise ValueError(
                f"sentence {example.sentence!r}: has white space that TSV cannot hold; pass it through clean()"
            )
        lines.append(f"{example.sentence}\t{example.label}")
    return ("\n".join(lines) + "\n").encode()


def balance(examples: Iterable[Example]) -> dict[Label, int]:
    """How many examples each class has, in class order."""
    counts = Counter(example.label for example in examples)
    return {label: counts[label] for label in LABELS}
