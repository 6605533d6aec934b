"""Token ids of texts, put together from those of their words: words repeat, so most of them are tokenized only once.

For tokenizers that read what stands between two spaces without looking at its neighbours, such as BERT's. The ids are
those of the whole text. Knows neither truncation nor control tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from distillchain_trainer.engine.encoding.encoded import ranges

Ids: TypeAlias = NDArray[np.int32]
WordIds: TypeAlias = Callable[[list[str]], list[list[int]]]
"""Token ids of some words, without the tokens around a text."""

MOST_WORDS = 2**17  # kept: they and their ids take about 25 MiB
# A word alone costs three to four times as much as one within a text (measured). With more new words than this share,
# whole texts cost less.
MOST_NEW = 0.2
GROUP_CHARS = 2**20  # of the texts whose words are in memory together

# The parts of a pipeline that never look beyond a space. A space does not combine with the mark after it in any of the
# normal forms of Unicode.
NORMALIZERS = {"NoneType", "BertNormalizer", "Lowercase", "NFC", "NFD", "StripAccents"}
PRE_TOKENIZERS = {"BertPreTokenizer", "Whitespace", "WhitespaceSplit"}
MODELS = {"WordPiece", "WordLevel"}


@dataclass(frozen=True)
class TokensAround:
    """The tokens that a tokenizer puts around the texts of a row.

    Attributes:
        ids: before each text, and after the last one.
        kinds: their token types.
        text_kinds: the token type of each text.
    """

    ids: list[list[int]]
    kinds: list[int]
    text_kinds: Ids

    @classmethod
    def of(cls, encoding: Any, alone: Sequence[int], *, texts_per_row: int) -> TokensAround | None:
        """From a row that has the same text in all columns; None: if the tokens between texts differ in their types.

        Args:
            encoding: of the row.
            alone: token ids of the text without tokens around it.
        """
        ids, kinds = list(encoding.ids), list(encoding.type_ids)
        texts = [place for place, is_around in enumerate(encoding.special_tokens_mask) if not is_around]
        if not alone or [ids[place] for place in texts] != list(alone) * texts_per_row:
            return None
        firsts = texts[:: len(alone)]
        gaps = list(zip([0, *(first + len(alone) for first in firsts)], [*firsts, len(ids)], strict=True))
        if any(len(set(kinds[start:stop])) > 1 for start, stop in gaps):
            return None
        return cls(
            ids=[ids[start:stop] for start, stop in gaps],
            kinds=[kinds[start] if start < stop else 0 for start, stop in gaps],
            text_kinds=np.array([kinds[first] for first in firsts], dtype=np.int32),
        )


@dataclass(frozen=True)
class JoinedTokens:
    """Untruncated token ids of some rows, one row after the other.

    Attributes:
        kinds: token types [tokens].
        sizes: tokens of each row.
    """

    ids: Ids
    kinds: Ids
    sizes: NDArray[np.int64]


class WordCache:
    """The words of the last texts, and their ids.

    Args:
        word_ids: tokenizes words.
        around: the tokens around texts; it knows how many texts a row has.
    """

    def __init__(self, word_ids: WordIds, around: TokensAround) -> None:
        self._word_ids = word_ids
        self._around = around
        self._columns = len(around.text_kinds)
        self._forget()

    def tokens(self, rows: Sequence[tuple[str, ...]]) -> JoinedTokens | None:
        """Token ids of some rows; None: so many words are new that whole texts cost less."""
        texts = list(chain.from_iterable(rows))
        # Only at spaces: other white space, and what counts as such, is left to the tokenizer.
        words = " ".join(texts).split(" ")
        if not self._learn(words):
            return None
        # Before each text, and after each row, comes a part that stands for the tokens around them.
        sizes = np.fromiter((text.count(" ") for text in texts), dtype=np.int64, count=len(texts)) + 2
        sizes[self._columns - 1 :: self._columns] += 1
        ends = np.cumsum(sizes)
        row_ends = ends[self._columns - 1 :: self._columns]
        parts = np.full(int(ends[-1]), -1, dtype=np.int64)
        kinds = np.repeat(np.tile(self._around.text_kinds, len(rows)), sizes)
        for column in range(self._columns):
            before = (ends - sizes)[column :: self._columns]
            parts[before], kinds[before] = column, self._around.kinds[column]
        parts[row_ends - 1], kinds[row_ends - 1] = self._columns, self._around.kinds[-1]
        parts[parts < 0] = np.fromiter(map(self._numbers.__getitem__, words), dtype=np.int64, count=len(words))
        part_sizes = np.diff(self._starts)[parts]
        token_ends = np.cumsum(part_sizes)[row_ends - 1]
        return JoinedTokens(
            self._ids[ranges(self._starts[parts], part_sizes)],
            np.repeat(kinds, part_sizes),
            np.diff(token_ends, prepend=0),
        )

    def _learn(self, words: list[str]) -> bool:
        """Tokenizes the words that are not known, unless they are too many. Returns: whether all are known now."""
        distinct = set(words)
        new = distinct.difference(self._numbers)
        if len(new) > max(MOST_NEW * len(words), 1_000):  # a few are always cheap, and the first rows know none
            return False
        if len(self._numbers) + len(new) > MOST_WORDS:
            self._forget()
            new = distinct
        # Sorted, because the order of a set differs between processes.
        missing = sorted(new)
        if missing:
            self._append(self._word_ids(missing))
            self._numbers.update(zip(missing, range(self._count - len(missing), self._count), strict=True))
        return True

    def _forget(self) -> None:
        self._numbers: dict[str, int] = {}
        self._ids = np.zeros(0, dtype=np.int32)
        self._starts = np.zeros(1, dtype=np.int64)
        self._append(self._around.ids)

    def _append(self, pieces: Sequence[Sequence[int]]) -> None:
        sizes = np.fromiter(map(len, pieces), dtype=np.int64, count=len(pieces))
        ids = np.fromiter(chain.from_iterable(pieces), dtype=np.int32, count=int(sizes.sum()))
        self._starts = np.concatenate([self._starts, self._starts[-1] + np.cumsum(sizes)])
        self._ids = np.concatenate([self._ids, ids])

    @property
    def _count(self) -> int:
        return len(self._starts) - 1


def reads_words_alone(backend: Any) -> bool:
    """Whether a tokenizer of the library tokenizers gives for a text what it gives for its words one by one."""
    names = [type(part).__name__ for part in (backend.normalizer, backend.pre_tokenizer, backend.model)]
    added = [token.content for token in backend.get_added_tokens_decoder().values()]
    return (
        all(name in known for name, known in zip(names, (NORMALIZERS, PRE_TOKENIZERS, MODELS), strict=True))
        # A token with a space would be found in the text and not in its words. Others than printable ASCII may be
        # normalized to one.
        and all(content.isascii() and content.isprintable() and " " not in content for content in added)
    )


def groups(rows: Sequence[tuple[str, ...]]) -> Iterator[Sequence[tuple[str, ...]]]:
    """Neighbouring rows whose texts have about GROUP_CHARS characters together."""
    start, chars = 0, 0
    for row, texts in enumerate(rows, start=1):
        chars += sum(map(len, texts))
        if chars >= GROUP_CHARS or row == len(rows):
            yield rows[start:row]
            start, chars = row, 0
