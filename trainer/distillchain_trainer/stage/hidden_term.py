"""The loss on hidden states of a stage: whether it has one, whether its models fit, and the term itself."""

from __future__ import annotations

import torch

from distillchain_api.resource.hidden import HiddenTerm
from distillchain_trainer.errors import CheckpointInvalid
from distillchain_trainer.hidden_states.term import HiddenStates, Models, build_hidden_term
from distillchain_trainer.stage.context import Context
from distillchain_trainer.stage.prepare import Prepared


def hidden_spec(context: Context) -> HiddenTerm | None:
    """What the work order says of it."""
    return context.order.distillation.hidden if context.order.distillation else None


def hidden_term(context: Context, prepared: Prepared) -> HiddenStates | None:
    """The term, with hooks on both models; None: the stage has none. Raises: CheckpointInvalid."""
    spec = hidden_spec(context)
    if spec is None:
        return None
    seed, device = context.order.training.seed, prepared.student.model.device
    return build_hidden_term(spec, _models(context, prepared), seed=seed, device=device)


def check_hidden_term(context: Context, prepared: Prepared) -> None:
    """Before anything is computed, that hidden states of both models can be compared. Raises: CheckpointInvalid."""
    term = hidden_term(context, prepared)
    if term is not None:
        term.close()
        _check_tokenizers(context, prepared)


def _models(context: Context, prepared: Prepared) -> Models:
    assert prepared.teacher is not None
    student, teacher = prepared.student, prepared.teacher
    return Models(
        student.model,
        teacher.loaded.model,
        student.start,
        teacher.checkpoint.uri,
        f"{context.order.field}.distillation.hidden",
    )


def _check_tokenizers(context: Context, prepared: Prepared) -> None:
    """Raises: CheckpointInvalid unless both tokenizers give the same tokens for all training rows."""
    assert prepared.teacher is not None
    # By what they do: tokenizers that are written in different files, or differ in words that no row has, are as good.
    own, other = (
        prepared.task.encode(prepared.data.taught, loaded, check=context.signals.raise_if_requested)
        for loaded in (prepared.student, prepared.teacher.loaded)
    )
    same_kinds = (own.kinds is None) == (other.kinds is None)
    if same_kinds and own.kinds is not None and other.kinds is not None:
        same_kinds = torch.equal(own.kinds, other.kinds)
    same = torch.equal(own.starts, other.starts) and torch.equal(own.ids, other.ids) and same_kinds
    if not same or (own.pad_id, own.pad_left) != (other.pad_id, other.pad_left):
        raise CheckpointInvalid(
            f"{context.order.field}.distillation.hidden: student {prepared.student.start} and teacher "
            f"{prepared.teacher.checkpoint.uri} cut the training texts into different tokens, expected the same ones, "
            "because hidden states are compared token by token; give the student the teacher's tokenizer "
            "(student.tokenizer), or remove hidden"
        )
