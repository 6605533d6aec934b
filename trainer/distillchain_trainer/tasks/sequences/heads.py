"""Sequence models ready to run: teachers, and students from a checkpoint or with new weights; classes matched by name.

A teacher must have a head for the task. A student may also start from a model without one, and then gets a new one.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from transformers import AutoModel

from distillchain_api.resource.student import Architecture
from distillchain_trainer.errors import CheckpointInvalid, first_line, translate_unforeseen
from distillchain_trainer.models.checkpoints import Checkpoint
from distillchain_trainer.models.configs import build_config, load_config
from distillchain_trainer.models.loaded import Loaded
from distillchain_trainer.models.loading import load_base, load_whole, seeded, shorten
from distillchain_trainer.models.memory import Processes
from distillchain_trainer.models.new_weights import build_new
from distillchain_trainer.models.tokenizers import (
    agree_on_padding,
    check_fit,
    load_tokenizer,
    vocabulary_size,
    warn_of_other_tokens,
    warn_of_other_vocabulary,
)
from distillchain_trainer.stage_warnings import StageWarnings
from distillchain_trainer.tasks.label_names import ClassOrder, match_classes
from distillchain_trainer.tasks.sequences.head import Head
from distillchain_trainer.tasks.sequences.head_config import check_head, class_names, set_head
from distillchain_trainer.tasks.sequences.working import check_saved_tokenizer, check_works

log = logging.getLogger(__name__)

FOR_TEACHERS = "a checkpoint of this task"
FOR_STUDENTS = f"{FOR_TEACHERS}, or one without a classifier head"


@dataclass(frozen=True)
class SequenceModel(Loaded):
    """A model with a head for a sequence task.

    Attributes:
        named: False for the default class names LABEL_0.., whose order must be proved by measuring.
        new_head: the head has new weights.
    """

    named: bool = True
    new_head: bool = False


def load_teacher(checkpoint: Checkpoint, head: Head, *, warnings: StageWarnings) -> SequenceModel:
    """A model with a head of the task. Raises: CheckpointInvalid, LabelMismatch."""
    config = load_config(checkpoint, warnings=warnings)
    # transformers would add a random head and only log that.
    if not head.is_in(config):
        raise CheckpointInvalid(
            f"{checkpoint.field}: {checkpoint.uri} has no {head.kind.name} "
            f"({', '.join(config.architectures or []) or 'no architectures'} in config.json); "
            "fine-tune it on the task first (spec.teacher.fineTune)"
        )
    teacher = _load_with_head(checkpoint, config, head, wanted=FOR_TEACHERS, tokenizer=checkpoint, warnings=warnings)
    check_works(teacher, head, who=f"{checkpoint.field}: {checkpoint.uri}", trains=False, warnings=warnings)
    return teacher


def load_student(
    checkpoint: Checkpoint, head: Head, *, tokenizer: Checkpoint | None, seed: int, warnings: StageWarnings
) -> SequenceModel:
    """A student that starts from a checkpoint; its outputs are in the order of the task where classes have names.

    Args:
        tokenizer: where the tokenizer comes from; None: from the checkpoint.
    Raises: CheckpointInvalid, LabelMismatch.
    """
    config = load_config(checkpoint, warnings=warnings)
    source = tokenizer or checkpoint
    if head.is_in(config):
        student = _load_with_head(checkpoint, config, head, wanted=FOR_STUDENTS, tokenizer=source, warnings=warnings)
        # The student is saved in the order of the task, so that whoever loads it needs no mapping.
        if student.columns is not None:
            turn_head(student.model, student.columns)
            log.info("classifier head put in the order of the task", extra={"checkpoint": checkpoint.uri})
        # Also where the order was right already: the names may differ from the task's in case.
        set_head(student.model.config, head)
        student = replace(student, columns=None)
    else:
        student = _with_new_head(checkpoint, config, head, tokenizer=source, seed=seed, warnings=warnings)
    check_works(student, head, who=f"{checkpoint.field}: {checkpoint.uri}", trains=True, warnings=warnings)
    # A checkpoint's own tokenizer has been loaded beside this model type already.
    if tokenizer is not None:
        check_saved_tokenizer(student, head, who=f"{tokenizer.field}: {tokenizer.uri}")
    return student


def build_student(
    architecture: Architecture,
    tokenizer: Checkpoint,
    head: Head,
    *,
    seed: int,
    field: str,
    processes: Processes,
    warnings: StageWarnings,
) -> SequenceModel:
    """A student with new weights, for so many processes. Raises: CheckpointInvalid naming the field."""
    kind, config = architecture.model_type, build_config(architecture, field=field)
    if not head.fits(config):
        raise CheckpointInvalid(
            f"{field}.architecture.modelType: got {kind}, which cannot {head.kind.ability}; use one that can, such as "
            f"{head.kind.known_to_work}"
        )
    # get_text_config: the configuration of some model types nests that of the text model; others return themselves.
    loaded_tokenizer, own = _tokenizer_of(tokenizer, head, is_new=True, warnings=warnings), config.get_text_config()
    # The sizes that follow from the tokenizer need not be written into the spec.
    if "vocab_size" not in architecture.config:
        own.vocab_size = vocabulary_size(loaded_tokenizer)
    if "pad_token_id" not in architecture.config:
        own.pad_token_id = loaded_tokenizer.pad_token_id
    agree_on_padding(loaded_tokenizer, config, what=f"{field}.architecture", warnings=warnings)
    model = build_new(
        lambda: _new_model(config, head), kind=kind, seed=seed, field=f"{field}.architecture", processes=processes
    )
    check_fit(model, loaded_tokenizer, field=field, name=kind, max_length=head.max_length)
    student = SequenceModel(model, loaded_tokenizer, f"architecture:{kind}", pretrained=False, new_head=True)
    check_works(
        student,
        head,
        who=f"{field}.architecture.modelType: got {kind}",
        remedy=f"; change its config or tokenizer, or use a model type such as {head.kind.known_to_work}",
        trains=True,
        warnings=warnings,
    )
    check_saved_tokenizer(student, head, who=f"{tokenizer.field}: {tokenizer.uri}")
    return student


def renew_head(model: Any, *, seed: int) -> None:
    """Gives a classifier new weights in everything outside its encoder."""
    with seeded(seed):
        # The whole model is built: how a head is initialised is known to its class alone.
        fresh = type(model)(model.config)
    # Whatever is not in the base model belongs to the head; its parts have other names in each architecture.
    inside = f"{model.base_model_prefix}."
    new = {name: value for name, value in fresh.state_dict().items() if not name.startswith(inside)}
    # Not strict, because the encoder's weights are left out.
    model.load_state_dict(new, strict=False)


def turn_head(model: Any, columns: tuple[int, ...]) -> None:
    """Puts the outputs of a classifier into the order of the task; see ClassOrder.columns."""
    layer, order = output_layer(model, len(columns)), list(columns)
    if layer is None:
        raise CheckpointInvalid(f"{type(model).__name__} has no linear head whose classes could be put in order")
    with torch.no_grad():
        layer.weight.copy_(layer.weight[order].clone())
        if layer.bias is not None:
            layer.bias.copy_(layer.bias[order].clone())


def output_layer(model: Any, outputs: int) -> nn.Linear | None:
    """The layer that gives a model's outputs; None if its head has no linear layer."""
    inside = f"{model.base_model_prefix}."
    # Not inside the encoder, where a layer may have as many outputs by chance.
    layers = [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module.out_features == outputs and not name.startswith(inside)
    ]
    # The last one: a head may have further layers before it, as RoBERTa's has.
    return layers[-1] if layers else None


def _load_with_head(
    checkpoint: Checkpoint, config: Any, head: Head, *, wanted: str, tokenizer: Checkpoint, warnings: StageWarnings
) -> SequenceModel:
    # Before the weights are loaded: config.json alone shows most mistakes.
    check_head(checkpoint, config, head)
    _check_supported(checkpoint, config, head)
    order = ClassOrder(tuple(range(len(head.names))), named=True)
    if head.has_classes:
        order = match_classes(
            class_names(config),
            head.names,
            field=checkpoint.field,
            uri=checkpoint.uri,
            wanted=wanted,
            warnings=warnings,
        )
    loaded_tokenizer = _tokenizer_of(tokenizer, head, is_new=False, warnings=warnings)
    agree_on_padding(loaded_tokenizer, config, what=f"{checkpoint.field}: {checkpoint.uri}", warnings=warnings)
    model = load_whole(head.kind.model_class, checkpoint, config)
    _check_tokenizer_fits(model, loaded_tokenizer, checkpoint, tokenizer, head, warnings)
    return SequenceModel(
        model,
        loaded_tokenizer,
        _start(checkpoint),
        pretrained=True,
        columns=order.columns if order.turned else None,
        named=order.named,
    )


def _with_new_head(
    checkpoint: Checkpoint, config: Any, head: Head, *, tokenizer: Checkpoint, seed: int, warnings: StageWarnings
) -> SequenceModel:
    """The model of any checkpoint under a new head; heads of other tasks are left out."""
    _check_supported(checkpoint, config, head)
    loaded_tokenizer = _tokenizer_of(tokenizer, head, is_new=True, warnings=warnings)
    agree_on_padding(loaded_tokenizer, config, what=f"{checkpoint.field}: {checkpoint.uri}", warnings=warnings)
    # AutoModel loads the encoder alone, whatever head the checkpoint has.
    base, missing = load_base(AutoModel, checkpoint, config)
    try:
        with seeded(seed):
            model = _new_model(config, head)
    except Exception as error:  # a class of transformers that cannot be built from this config
        raise translate_unforeseen(error) or CheckpointInvalid(
            f"{checkpoint.field}: {checkpoint.uri}: a classifier of this {config.model_type} cannot be built: "
            f"{first_line(error)}"
        ) from error
    loaded = {name: value for name, value in base.state_dict().items() if name not in missing}
    # Not strict, because a base model may have a pooler that the classifier does not have.
    absent = set(model.base_model.load_state_dict(loaded, strict=False).missing_keys) - set(missing)
    if absent:
        raise CheckpointInvalid(f"{checkpoint.field}: {checkpoint.uri} lacks weights ({shorten(absent)})")
    prefix = f"{model.base_model_prefix}."
    # What the base did not have: the head, and the pooler where the base was trained without one.
    new = [
        name for name in model.state_dict() if name.removeprefix(prefix) not in loaded or not name.startswith(prefix)
    ]
    warnings.add(
        f"{checkpoint.field}: {checkpoint.uri} has no head for this task; these weights start new: {shorten(new)}"
    )
    _check_tokenizer_fits(model, loaded_tokenizer, checkpoint, tokenizer, head, warnings)
    return SequenceModel(model, loaded_tokenizer, _start(checkpoint), pretrained=True, new_head=True)


def _check_supported(checkpoint: Checkpoint, config: Any, head: Head) -> None:
    if not head.fits(config):
        raise CheckpointInvalid(
            f"{checkpoint.field}: {checkpoint.uri} is a {config.model_type}, which cannot {head.kind.ability}; use a "
            f"model type that can, such as {head.kind.known_to_work}"
        )


def _tokenizer_of(checkpoint: Checkpoint, head: Head, *, is_new: bool, warnings: StageWarnings) -> Any:
    tokenizer = load_tokenizer(checkpoint)
    what = f"{checkpoint.field}: the tokenizer of {checkpoint.uri}"
    warn_of_other_tokens(checkpoint, tokenizer, what=what, warnings=warnings)
    head.prepare_tokenizer(tokenizer, what=what, is_new=is_new, warnings=warnings)
    return tokenizer


def _check_tokenizer_fits(
    model: Any, loaded: Any, checkpoint: Checkpoint, tokenizer: Checkpoint, head: Head, warnings: StageWarnings
) -> None:
    check_fit(model, loaded, field=tokenizer.field, name=checkpoint.uri, max_length=head.max_length)
    warn_of_other_vocabulary(model, loaded, what=f"{tokenizer.field}: {tokenizer.uri}", warnings=warnings)


def _new_model(config: Any, head: Head) -> Any:
    return head.kind.model_class.from_config(set_head(config, head))


def _start(checkpoint: Checkpoint) -> str:
    return f"{checkpoint.uri} ({checkpoint.revision})"
