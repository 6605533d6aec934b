"""Writes the sentences of this folder's two chains: short reviews of restaurants in our own words (CC0).

    python examples/reviews/sentences.py --into examples/reviews/data

Each review has up to three parts, about the food, the service or the price. `labels.tsv` lists what it is about;
`stars.tsv` has the mean of the parts' stars, from 0 to 100. No two reviews are equal.
"""

from __future__ import annotations

import argparse
import itertools
import random
from pathlib import Path

# What a part says, and how many stars it is worth. Neighbours in a list are written for the same subject.
PARTS: dict[str, list[tuple[str, int]]] = {
    "food": [
        ("the soup was superb", 100),
        ("the bread was fresh and warm", 90),
        ("I liked the fish", 80),
        ("the salad was decent", 60),
        ("the rice was bland", 30),
        ("the meat was cold", 20),
        ("the dessert was awful", 0),
    ],
    "service": [
        ("our waiter was wonderful", 100),
        ("the staff were friendly", 90),
        ("the waiter was polite", 75),
        ("we were served on time", 65),
        ("the staff were slow", 30),
        ("nobody answered our questions", 20),
        ("the waiter was rude", 0),
    ],
    "price": [
        ("it was a bargain", 100),
        ("the bill was lower than we feared", 85),
        ("the prices are fair", 75),
        ("it costs what such places cost", 55),
        ("the drinks are expensive", 30),
        ("we paid far too much", 10),
        ("the bill was an outrage", 0),
    ],
}
# Says nothing of the three and is worth nothing in particular.
OPENINGS = ["on Sunday", "with two friends", "last week", "after the theatre", "near the station", "once more"]
NEUTRAL = 50


def reviews(seed: int) -> list[tuple[str, list[str], float]]:
    """Text, labels and stars of every review, in random order."""
    dice = random.Random(seed)
    found = []
    for opening in OPENINGS:
        for size in range(3):
            for subjects in itertools.combinations(PARTS, size):
                for parts in itertools.product(*(PARTS[subject] for subject in subjects)):
                    words = [text for text, _ in parts]
                    dice.shuffle(words)
                    text = f"{opening} we came here and {' , '.join(words) or 'there is little to report'} ."
                    stars = sum(worth for _, worth in parts) / size if size else NEUTRAL
                    found.append((text, list(subjects), stars))
    dice.shuffle(found)
    return found


def write(folder: Path, *, validation: int = 200, seed: int = 1) -> None:
    """Writes train and validation of both tasks into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = reviews(seed)
    for name, part in (("validation", rows[:validation]), ("train", rows[validation:])):
        labels = [f"{text}\t{','.join(subjects)}\n" for text, subjects, _ in part]
        stars = [f"{text}\t{worth:.1f}\n" for text, _, worth in part]
        (folder / f"labels-{name}.tsv").write_text("text\tlabels\n" + "".join(labels), encoding="utf-8")
        (folder / f"stars-{name}.tsv").write_text("text\tstars\n" + "".join(stars), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Writes the sentences of the chains in examples/reviews.")
    parser.add_argument("--into", type=Path, required=True, help="folder that is created if it does not exist")
    write(parser.parse_args().into)
