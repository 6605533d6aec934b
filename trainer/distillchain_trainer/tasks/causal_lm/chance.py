"""Tests whether a language model beats the frequencies of the tokens, which need no context. Pure."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from distillchain_api.metrics import format_value
from distillchain_api.tasks.causal_lm import TOKEN_CROSS_ENTROPY

Z_95 = 1.645  # one-sided 95 % of a normal distribution


def unigram_log_probabilities(targets: NDArray[np.int64], vocabulary: int) -> NDArray[np.float64]:
    """What token frequencies say of each token [tokens], in nats.

    The frequencies are those of the other tokens of the split, with one added for each token of the vocabulary
    (Laplace): counting the token itself would let the frequencies know what they are to predict, and with few tokens
    no model could beat that.
    """
    _, inverse, counts = np.unique(targets, return_inverse=True, return_counts=True)
    # counts - 1 others, and one for the token itself.
    found: NDArray[np.float64] = np.log(counts[inverse] / (len(targets) - 1 + vocabulary))
    return found


def doubt_of(log_probabilities: NDArray[np.float64], targets: NDArray[np.int64], vocabulary: int) -> str | None:
    """Why a model may not have learned the texts; None where it beats the frequencies by more than luck.

    Args:
        log_probabilities: of the tokens, by the model [tokens].
    """
    gains = log_probabilities - unigram_log_probabilities(targets, vocabulary)
    count = len(gains)
    # Token by token, as both have predicted the same ones.
    margin = Z_95 * float(gains.std(ddof=1)) / math.sqrt(count) if count > 1 else 0.0
    if gains.mean() > margin:
        return None
    own = -float(log_probabilities.mean())
    chance = own + float(gains.mean())
    return (
        f"tokenCrossEntropy {format_value(own, TOKEN_CROSS_ENTROPY, chance)} on {count} validation tokens does not "
        "beat the frequencies of the tokens, which reach "
        f"{format_value(chance, TOKEN_CROSS_ENTROPY)} without any context"
    )
