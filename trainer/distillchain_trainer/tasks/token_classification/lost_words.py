"""Words that a model does not read: they are cut off by truncation, or their characters give no token."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillchain_trainer.data.split import Split
from distillchain_trainer.engine.encoding.encoded import CUT_OFF, Encoded
from distillchain_trainer.stage_warnings import StageWarnings

REMEDY = "they count as O, and no student learns from them"


def warn_of_lost_words(
    encoded: Encoded, split: Split, tokenizer: Any, *, max_length: int, warnings: StageWarnings
) -> None:
    """One warning for each reason, with the number of words."""
    assert encoded.positions is not None
    is_lost = encoded.positions.cpu().numpy() == CUT_OFF
    if not is_lost.any():
        return
    is_cut_off = is_lost & _may_be_cut_off(encoded, is_lost, max_length, left=tokenizer.truncation_side == "left")
    cut_off, without = int(is_cut_off.sum()), int((is_lost & ~is_cut_off).sum())
    named = f"of {len(is_lost)} words of {split.name}"
    # The size of the vocabulary tells teacher and student apart.
    of_tokenizer = f"(tokenizer with {len(tokenizer)} tokens)"
    if cut_off:
        warnings.add(f"spec.task.maxLength: {cut_off} {named} are beyond {max_length} tokens {of_tokenizer}; {REMEDY}")
    if without:
        example = _first_word(encoded, split, is_lost & ~is_cut_off)
        warnings.add(
            f"{without} {named} have no token, such as {example}: the tokenizer drops all of their characters "
            f"{of_tokenizer}; {REMEDY}"
        )


def _may_be_cut_off(encoded: Encoded, is_lost: NDArray[np.bool_], max_length: int, *, left: bool) -> NDArray[np.bool_]:
    """Words beyond the last word with a token in rows of full length; before the first one, if the left is cut."""
    assert encoded.item_starts is not None
    starts = encoded.item_starts.cpu().numpy()
    sizes = np.diff(starts)
    row = np.repeat(np.arange(len(sizes)), sizes)
    is_full = (encoded.starts.diff().cpu().numpy() >= max_length)[row]
    # How many words of the row up to here, or from here on, have a token.
    kept = np.concatenate([[0], np.cumsum(~is_lost)])
    places = np.arange(len(is_lost))
    beyond = kept[places] - kept[starts[row]] if left else kept[starts[row + 1]] - kept[places]
    found: NDArray[np.bool_] = is_full & (beyond == 0)
    return found


def _first_word(encoded: Encoded, split: Split, picked: NDArray[np.bool_]) -> str:
    assert encoded.item_starts is not None
    item = int(picked.argmax())
    starts = encoded.item_starts.cpu().numpy()
    row = int(np.searchsorted(starts, item, side="right")) - 1
    # Not the word itself: warnings go into the store, where texts may be unwanted (DISTILLCHAIN_KEEP_TEXTS=0).
    return f"word {item - int(starts[row]) + 1} at {split.place(row)}"
