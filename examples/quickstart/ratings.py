"""Converts sentences with the rating of each person to TSV files with a number and with labels, for other tasks.

Does not know about downloads or models. `sentences` describes the source and decides the split of a sentence.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass

from errors import SourceError
from sentences import SPLITS, Rated, Split, identity, parse_ground_truth, split_of, table

# Beginnings of file names, and the label of all their sentences. The ids of the tweets do not match their ratings.
SOURCES = {"movieReviewSnippets": "film", "amazonReviewSnippets": "product", "nytEditorialSnippets": "news"}
# So that each source has as many sentences, and two cores train a model in two minutes.
SENTENCES_PER_SOURCE = 2_000
# An opinion counts if it is that of at least this share of the raters: of 15 people, one or two misread.
SHARE_OF_RATERS = 0.25
STRONG_FROM = 3  # of 4


@dataclass(frozen=True, slots=True)
class Labelled:
    """`rating` is the mean, from -4 to +4; `labels` are the source and what many of the raters think."""

    sentence: str
    rating: float
    labels: tuple[str, ...]


def label(source: str, ground_truth: bytes, ratings: bytes) -> list[Labelled]:
    """Sentences of one source: the same ones on every machine, each once, in an order that says nothing.

    Raises: SourceError when a file has another form, or when ratings do not have the mean of their sentence.
    """
    single = parse_ratings(ratings, f"{source}_anonDataRatings.txt")
    rated = parse_ground_truth(ground_truth, f"{source}_GroundTruth.txt")
    found = {
        identity(item.sentence): Labelled(item.sentence, item.mean_rating, (SOURCES[source], *opinions(item, single)))
        for item in rated
    }
    chosen = sorted(found, key=lambda key: hashlib.sha256(f"{source} {key}".encode()).digest())[:SENTENCES_PER_SOURCE]
    return [found[key] for key in chosen]


def parse_ratings(data: bytes, name: str) -> dict[str, list[int]]:
    """The ratings of each sentence by its id. Lines have an id, mean, standard deviation, and the ratings in brackets.

    Raises: SourceError with file and line when a line has another form.
    """
    found = {}
    for number, line in enumerate(data.decode("utf-8-sig", errors="replace").splitlines(), start=1):
        key, *_, ratings = line.split("\t")
        try:
            found[key] = [int(rating) for rating in json.loads(ratings)]
        except (ValueError, TypeError) as error:
            raise SourceError(
                f"{name} line {number}: got {ratings[:40]!r}, expected ratings such as [1, -2]"
            ) from error
    return found


def opinions(item: Rated, ratings: dict[str, list[int]]) -> list[str]:
    """What at least SHARE_OF_RATERS of the raters think: also two opposites, where they disagree."""
    found = ratings.get(item.key, [])
    if not found or abs(sum(found) / len(found) - item.mean_rating) > 0.01:
        raise SourceError(f"sentence {item.key}: its mean rating is {item.mean_rating:g}, but its ratings are {found}")
    counts = {
        "negative": sum(rating < 0 for rating in found),
        "neutral": found.count(0),
        "positive": sum(rating > 0 for rating in found),
        "strong": sum(abs(rating) >= STRONG_FROM for rating in found),
    }
    return [opinion for opinion, count in counts.items() if count >= SHARE_OF_RATERS * len(found)]


def divide(items: Iterable[Labelled]) -> dict[Split, list[Labelled]]:
    """The sentences of each split. One that two sources have is there once."""
    splits: dict[Split, list[Labelled]] = {split: [] for split in SPLITS}
    for item in {identity(item.sentence): item for item in items}.values():
        splits[split_of(item.sentence)].append(item)
    return splits


def to_tsv(items: Iterable[Labelled]) -> bytes:
    """A header and one line per sentence, with its labels separated by commas."""
    rows = ((item.sentence, f"{item.rating:.2f}", ",".join(item.labels)) for item in items)
    return table(("sentence", "rating", "labels"), rows)
