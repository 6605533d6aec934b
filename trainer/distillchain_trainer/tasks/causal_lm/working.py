"""Checks on two short rows that a language model predicts each token from those before it, and from nothing else."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from distillchain_trainer.engine.device.calling import in_eval_mode
from distillchain_trainer.errors import CheckpointInvalid
from distillchain_trainer.models.forward_check import ForwardFailed, Rows, check_training, find_padding_side
from distillchain_trainer.models.loaded import Loaded
from distillchain_trainer.models.tokenizers import check_loads_again

TEXT = "a long film with a good story, which is told well and with 3 of the best actors of the year"
BELONG_TOGETHER = "check that config.json, weights and tokenizer belong together"
# Relative to the largest logit. Measured with random weights in float32: a later token moves earlier logits by 0 in
# four decoders, and by 1.7e-4 (one layer of 16) to 9.5e-3 (four layers of 256) in encoders.
TOLERANCE = 3e-5


def check_works(loaded: Loaded, *, who: str, trains: bool) -> None:
    """Checks that a model gives finite logits, reads no later tokens, and ignores padding on the right.

    A model without weights is not checked.

    Args:
        who: begins the message.
        trains: also check a forward pass in training mode.
    Raises: CheckpointInvalid.
    """
    if loaded.is_weightless:
        return
    model, rows = loaded.model, _probe(loaded.tokenizer)
    shape = (int(model.get_output_embeddings().weight.shape[0]),)
    try:
        side = find_padding_side(model, rows, pad_id=loaded.pad_id, outputs_of=_logits, shape=shape, per_token=True)
        if side != "right":
            raise ForwardFailed("gives a text padded on the right another answer; ")
        if trains:
            check_training(model, rows, pad_id=loaded.pad_id, side=side)
        _check_reads_nothing_later(model, rows)
    except ForwardFailed as error:
        raise CheckpointInvalid(f"{who}: the model {str(error).removesuffix('; ')}; {BELONG_TOGETHER}") from error


def check_saved_tokenizer(loaded: Loaded, *, who: str) -> None:
    """See check_loads_again. Raises: CheckpointInvalid."""
    check_loads_again(
        loaded,
        lambda tokenizer: tokenizer(TEXT)["input_ids"],
        who=who,
        remedy="use a student of the teacher's model type",
    )


def _check_reads_nothing_later(model: Any, rows: Rows) -> None:
    """That another last token changes no logits but its own, as it does in BERT under a head for words."""
    ids = torch.tensor([list(rows[1]["input_ids"])])
    other = ids.clone()
    other[0, -1] = ids[0, 0]
    with in_eval_mode(model), torch.no_grad():
        first, second = (_logits(model(input_ids=row))[0, :-1].float() for row in (ids, other))
    if (first - second).abs().max() > TOLERANCE * first.abs().max():
        raise ForwardFailed("reads tokens after the one that it predicts from, so it cannot write texts")


def _probe(tokenizer: Any) -> Rows:
    """Inputs of a short and a long row."""
    ids = list(tokenizer(TEXT)["input_ids"])
    if len(set(ids)) < 2:  # a tokenizer without these words
        ids = sorted(set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids))[:8]
    return [{"input_ids": ids[:2]}, {"input_ids": ids}]


def _logits(answer: Any) -> Tensor:
    logits: Tensor = answer.logits
    return logits
