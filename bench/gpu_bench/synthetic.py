"""Sentences made of synthetic words, with labels that a model can learn from the words, and a tokenizer for them."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

from .sizes import LABELS, Sizes

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
SIGNALS = 20  # words that occur in the texts of one class only, for each class
# Words of a sentence are drawn from a lognormal distribution. Like SST-2 with BERT's tokenizer, it has a median of 11
# tokens, a mean of about 13 and a maximum of 66 (with [CLS] and [SEP]).
MEDIAN_WORDS, SIGMA, MOST_WORDS = 9.0, 0.66, 64
NOISE = 0.05  # share of wrong labels, so that a teacher is not sure of everything
CONTROL_TOKENS = 2  # [CLS] and [SEP]


def words_of(sizes: Sizes) -> list[str]:
    """Distinct words; with the special tokens they are the vocabulary."""
    syllables = [consonant + vowel for consonant in "bcdfghjklmnprstvwxyz" for vowel in "aeiou"]
    pairs = itertools.product(syllables, repeat=2)
    triples = itertools.product(syllables, repeat=3)
    spelled = ("".join(parts) for parts in itertools.chain(pairs, triples))
    return list(itertools.islice(spelled, sizes.vocabulary - len(SPECIAL)))


class Sentences:
    """Draws sentences; a fifth of the words, and at least one, shows the class."""

    def __init__(self, words: list[str], seed: int) -> None:
        self._dice = random.Random(seed)
        self._signals = (words[:SIGNALS], words[SIGNALS : 2 * SIGNALS])
        self._fillers = words[2 * SIGNALS :]
        # Zipf's law, flattened at the start as in texts without stop words (a guess).
        self._weights = list(itertools.accumulate(1 / (rank + 10) for rank in range(len(self._fillers))))

    def draw(self, words: int | None = None) -> tuple[str, int]:
        """A sentence and the index of its class. `words`: how many; None: a random length."""
        label = self._dice.randrange(2)
        count = self._length() if words is None else words
        signals = max(1, count // 5)
        picked = self._dice.choices(self._signals[label], k=signals)
        picked += self._dice.choices(self._fillers, cum_weights=self._weights, k=count - signals)
        self._dice.shuffle(picked)
        return " ".join(picked), 1 - label if self._dice.random() < NOISE else label

    def _length(self) -> int:
        drawn = round(MEDIAN_WORDS * self._dice.lognormvariate(0.0, SIGMA))
        return min(max(drawn, 1), MOST_WORDS)


Texts = list[tuple[str, int]]


def write_splits(folder: Path, sizes: Sizes) -> dict[str, Texts]:
    """train.tsv and dev.tsv of the small students."""
    words = words_of(sizes)
    return {
        name: _write(folder / f"{name}.tsv", [sentences.draw() for _ in range(rows)])
        for name, rows, sentences in (
            ("train", sizes.rows, Sentences(words, 1)),
            ("dev", sizes.validation_rows, Sentences(words, 2)),
        )
    }


def write_long_splits(folder: Path, sizes: Sizes) -> dict[str, Texts]:
    """train.tsv and dev.tsv of the large model, whose texts all have the same number of tokens."""
    words = words_of(sizes)
    count = sizes.large_tokens - CONTROL_TOKENS
    return {
        name: _write(folder / f"{name}.tsv", [sentences.draw(count) for _ in range(rows)])
        for name, rows, sentences in (
            ("train", sizes.large_rows, Sentences(words, 3)),
            ("dev", sizes.large_validation_rows, Sentences(words, 4)),
        )
    }


def _write(path: Path, rows: Texts) -> Texts:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"{text}\t{label}\n" for text, label in rows]
    path.write_text("sentence\tlabel\n" + "".join(lines), encoding="utf-8")
    return rows


def build_tokenizer(sizes: Sizes) -> Any:
    """A BERT tokenizer (WordPiece) in which every word of the sentences is one token."""
    from transformers import BertTokenizer

    return BertTokenizer(vocab={word: index for index, word in enumerate([*SPECIAL, *words_of(sizes)])})


def build_bert(sizes: Sizes, config: dict[str, Any]) -> Any:
    """A BERT classifier with random weights, on the device that is torch's default."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=sizes.vocabulary,
            id2label=dict(enumerate(LABELS)),
            label2id={name: index for index, name in enumerate(LABELS)},
            **config,
        )
    )


def build_femto(sizes: Sizes) -> Any:
    """The bert-hash classifier that `architecture: {modelType: bert-hash}` gives, with random weights."""
    import torch
    from transformers import AutoModelForSequenceClassification

    from distillchain_trainer.models import bert_hash

    bert_hash.register()
    torch.manual_seed(0)
    config = bert_hash.BertHashConfig(vocab_size=sizes.vocabulary, num_labels=len(LABELS), **sizes.femto)
    return AutoModelForSequenceClassification.from_config(config)


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """A checkpoint that a work order can name."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
