"""Checks on two short texts that a model works with its tokenizer, and finds the side to pad batches on."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from distillchain_trainer.errors import CheckpointInvalid
from distillchain_trainer.models.forward_check import (
    MIXES_PADDING,
    ForwardFailed,
    Rows,
    check_training,
    find_padding_side,
)
from distillchain_trainer.models.loaded import Loaded
from distillchain_trainer.models.tokenizers import check_loads_again, set_padding_side
from distillchain_trainer.stage_warnings import StageWarnings
from distillchain_trainer.tasks.sequences.head import Head

# Of different length, so that one is padded. LONG has punctuation and a digit, which tokenizers treat differently.
SHORT = "good"
LONG = "a long film with a good story, which is told well and with care, and with 3 of the best actors of the year"
# The number of words in LONG.
LONG_TOKENS = 24
BELONG_TOGETHER = "; check that config.json, weights and tokenizer belong together"


def check_works(
    loaded: Loaded, head: Head, *, who: str, trains: bool, warnings: StageWarnings, remedy: str = BELONG_TOGETHER
) -> None:
    """Checks that a model gives each text its finite outputs, whatever else is in the batch.

    Sets the tokenizer's padding side accordingly. A model without weights is not checked.

    Args:
        who: begins the message; `remedy` ends it.
        trains: also check a forward pass in training mode.
    Raises: CheckpointInvalid.
    """
    if loaded.is_weightless:
        return
    model, tokenizer = loaded.model, loaded.tokenizer
    try:
        rows = _probe(tokenizer, head)
        # Before the forward passes, whose error would not say that the tokenizer is the reason.
        if not head.kind.per_token:
            _check_end_token(model.config, tokenizer, rows)
        shape, per_token = (len(head.names),), head.kind.per_token
        side = find_padding_side(
            model, rows, pad_id=loaded.pad_id, outputs_of=_logits, shape=shape, per_token=per_token
        )
        if trains:
            # If neither side is right, any will do: this pass only has to complete.
            check_training(model, rows, pad_id=loaded.pad_id, side=side or "right")
    except ForwardFailed as error:
        raise CheckpointInvalid(f"{who}: the model {error}{remedy}") from error
    if side is None:
        side = _accept_mixing(model.config, who, remedy, warnings)
    if side != tokenizer.padding_side:
        warnings.add(
            f"{who}: padding_side of the tokenizer is {tokenizer.padding_side}; batches are padded on the {side}, so "
            "that the answer for a text does not depend on the other texts in its batch"
        )
    set_padding_side(tokenizer, side)


def check_saved_tokenizer(loaded: Loaded, head: Head, *, who: str) -> None:
    """See check_loads_again. Raises: CheckpointInvalid."""
    kind = loaded.model.config.model_type
    check_loads_again(
        loaded,
        lambda tokenizer: [list(row["input_ids"]) for row in _probe(tokenizer, head)],
        who=who,
        remedy=f"use the tokenizer of a {kind} checkpoint, or another model type",
    )


def _accept_mixing(config: Any, who: str, remedy: str, warnings: StageWarnings) -> str:
    """The padding side of a model whose answers depend on padding on both sides."""
    # For these types it is their nature; for any other it is a fault of the checkpoint.
    if config.model_type not in MIXES_PADDING:
        raise CheckpointInvalid(
            f"{who}: the model gives a padded text another answer, with padding_side left and right alike; its padding "
            f"token does not fit{remedy}"
        )
    warnings.add(
        f"{who}: models of type {config.model_type} also read padding, so the answer for a "
        "text changes slightly with the other texts in its batch"
    )
    return "right"


def _probe(tokenizer: Any, head: Head) -> Rows:
    """Inputs of a short and a long row."""
    with_kinds = "token_type_ids" in tokenizer.model_input_names
    bound = head.bind(tokenizer, head.max_length, with_kinds=with_kinds)
    tokens = bound.tokenize([head.row_of(SHORT), head.row_of(LONG)])
    ids, kinds = [row.tolist() for row in tokens.ids], [row.tolist() for row in tokens.kinds]
    if not ids[0]:  # a tokenizer without these words and without a token for unknown ones
        # Any ordinary token will do: what counts is that the rows differ in length.
        word = min(set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids))
        ids = [[word], [word] * min(LONG_TOKENS, head.max_length)]
        kinds = [[0] * len(row) for row in ids]
    rows = [{"input_ids": row} for row in ids]
    if not with_kinds:
        return rows
    return [row | {"token_type_ids": row_kinds} for row, row_kinds in zip(rows, kinds, strict=True)]


def _check_end_token(config: Any, tokenizer: Any, rows: Rows) -> None:
    """An encoder-decoder classifies by the state at its end token, so every text must have the same number of them."""
    if not getattr(config, "is_encoder_decoder", False):
        return
    end = config.eos_token_id
    counts = {list(row["input_ids"]).count(end) for row in rows}
    # If the end token is the unknown one, every unknown word in a text would count as an end.
    if len(counts) > 1 or 0 in counts or end == tokenizer.unk_token_id:
        raise ForwardFailed(
            f"classifies by its end token (eos_token_id {end}), which this tokenizer does not put at the end of a text"
        )


def _logits(answer: Any) -> Tensor:
    logits: Tensor = answer.logits
    return logits
