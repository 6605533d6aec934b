"""Language models ready to run: teachers, and students from a checkpoint or with new weights.

A student takes over the tokenizer of its teacher, so that both read every text as the same tokens and later stages and
users find the same chat template.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from distillchain_api.faults import listed
from distillchain_api.resource.student import Architecture
from distillchain_api.tasks.causal_lm import CausalLM
from distillchain_trainer.errors import CheckpointInvalid
from distillchain_trainer.models.checkpoints import Checkpoint
from distillchain_trainer.models.configs import build_config, load_config
from distillchain_trainer.models.loaded import Loaded
from distillchain_trainer.models.loading import load_whole
from distillchain_trainer.models.memory import Processes
from distillchain_trainer.models.new_weights import build_new
from distillchain_trainer.models.tokenizers import (
    agree_on_padding,
    check_fit,
    load_tokenizer,
    vocabulary_size,
    warn_of_other_tokens,
)
from distillchain_trainer.stage_warnings import StageWarnings
from distillchain_trainer.tasks.causal_lm.chat import check_template, end_of_answers
from distillchain_trainer.tasks.causal_lm.working import check_saved_tokenizer, check_works

KNOWN_TO_WORK = "llama, qwen2, qwen3, mistral, gemma2, phi3, gpt_neox or gpt2"
OTHER_VOCABULARY = (
    "use a model of the teacher's family; between other vocabularies, TRL's GOLD trainer uses the loss ULD"
)

MAX_NAMED_TOKENS = 4


def load_teacher(checkpoint: Checkpoint, task: CausalLM, *, warnings: StageWarnings) -> Loaded:
    """A language model with its own tokenizer. Raises: CheckpointInvalid."""
    teacher = _load(checkpoint, task, tokenizer=checkpoint, warnings=warnings)
    _check_reads(teacher, task, checkpoint, warnings=warnings)
    check_works(teacher, who=f"{checkpoint.field}: {checkpoint.uri}", trains=False)
    return teacher


def load_student(
    checkpoint: Checkpoint,
    task: CausalLM,
    *,
    tokenizer: Checkpoint | None,
    teacher: Loaded | None,
    warnings: StageWarnings,
) -> Loaded:
    """A student that starts from a checkpoint.

    Args:
        tokenizer: where the tokenizer comes from; None: from the checkpoint.
        teacher: None: stage zero, which keeps its own tokenizer.
    Raises: CheckpointInvalid, also for another vocabulary than the teacher's.
    """
    source = tokenizer or checkpoint
    student = _load(checkpoint, task, tokenizer=source, warnings=warnings)
    if teacher is not None:
        student = with_tokenizer_of(teacher, student, what=f"{source.field}: {source.uri}", warnings=warnings)
    _check_reads(student, task, source, warnings=warnings)
    check_works(student, who=f"{checkpoint.field}: {checkpoint.uri}", trains=True)
    # Another checkpoint's tokenizer: is it the same one when it is loaded beside this model?
    if tokenizer is not None or teacher is not None:
        check_saved_tokenizer(student, who=f"{source.field}: {source.uri}")
    return student


def build_student(
    architecture: Architecture,
    tokenizer: Checkpoint,
    task: CausalLM,
    *,
    teacher: Loaded | None,
    seed: int,
    field: str,
    processes: Processes,
    warnings: StageWarnings,
) -> Loaded:
    """A student with new weights, for so many processes. Raises: CheckpointInvalid naming the field."""
    kind, config = architecture.model_type, build_config(architecture, field=field)
    if not _is_supported(config):
        raise CheckpointInvalid(
            f"{field}.architecture.modelType: got {kind}, which does not predict the next token; use one that "
            f"does, such as {KNOWN_TO_WORK}"
        )
    found, own = _tokenizer_of(tokenizer, warnings=warnings), config.get_text_config()
    _check_end(found, what=f"{tokenizer.field}: the tokenizer of {tokenizer.uri}")
    # The values that follow from the tokenizer need not be written into the spec.
    derived = {
        "vocab_size": vocabulary_size(found),
        "pad_token_id": found.pad_token_id,
        "bos_token_id": found.bos_token_id,
        "eos_token_id": found.eos_token_id,
    }
    for name, value in derived.items():
        if name not in architecture.config:
            setattr(own, name, value)
    config.dtype = torch.float32
    agree_on_padding(found, config, what=f"{field}.architecture", warnings=warnings)
    model = build_new(lambda: _new(config), kind=kind, seed=seed, field=f"{field}.architecture", processes=processes)
    check_fit(model, found, field=field, name=kind, max_length=task.max_length)
    student = Loaded(model, found, f"architecture:{kind}", pretrained=False)
    if teacher is not None:
        student = with_tokenizer_of(teacher, student, what=f"{tokenizer.field}: {tokenizer.uri}", warnings=warnings)
    _check_reads(student, task, tokenizer, warnings=warnings)
    check_works(student, who=f"{field}.architecture.modelType: got {kind}", trains=True)
    check_saved_tokenizer(student, who=f"{tokenizer.field}: {tokenizer.uri}")
    return student


def with_tokenizer_of(
    teacher: Loaded, student: Loaded, *, what: str, warnings: StageWarnings, is_trained: bool = True
) -> Loaded:
    """A student, or a further teacher, with the tokenizer, chat template and end tokens of the teacher.

    No id may stand for different tokens. The embeddings may have different numbers of rows, of which those beyond the
    vocabulary are padding.

    Args:
        is_trained: it may learn tokens that its own tokenizer lacks, if it has embeddings for them.
    Raises: CheckpointInvalid.
    """
    other = f"{what}: its vocabulary differs from the vocabulary of the teacher {teacher.start}"
    ours, theirs = student.tokenizer.get_vocab(), teacher.tokenizer.get_vocab()
    difference = _difference(ours, theirs)
    if difference:
        raise CheckpointInvalid(f"{other}: {difference}; {OTHER_VOCABULARY}")
    lacking = [token for token in theirs if token not in ours]
    if lacking:
        tokens = f"{listed(sorted(lacking, key=theirs.__getitem__), most=MAX_NAMED_TOKENS)}, which it lacks"
        if not is_trained:
            raise CheckpointInvalid(f"{other}: the teacher has {tokens}; {OTHER_VOCABULARY}")
        if vocabulary_size(teacher.tokenizer) > student.model.get_input_embeddings().weight.shape[0]:
            raise CheckpointInvalid(
                f"{other}: the teacher has {tokens}; add them to its tokenizer with add_tokens(), in this order, call "
                "resize_token_embeddings() of the model, and save both"
            )
        warnings.add(f"{what}: the tokenizer of the teacher has {tokens}; their embeddings may not have been trained")
    own, template = student.tokenizer.chat_template, teacher.tokenizer.chat_template
    if own and own != template:
        warnings.add(f"{what}: its chat template differs from the teacher's; the teacher's tokenizer is used")
    _end_as(teacher, student.model)
    return Loaded(student.model, teacher.tokenizer, student.start, pretrained=student.pretrained)


def _end_as(teacher: Loaded, model: Any) -> None:
    """generate() must stop at the tokens at which the teacher stops: a base model has others than a chat model."""
    for name in ("generation_config", "config"):
        theirs, ours = getattr(teacher.model, name, None), getattr(model, name, None)
        if theirs is not None and ours is not None and getattr(theirs, "eos_token_id", None) is not None:
            ours.eos_token_id = theirs.eos_token_id


def _stop_at(end: int | None, model: Any) -> None:
    """generate() must also stop at the token that ends what is learned: a base model may know another one alone."""
    config = model.generation_config
    if end is None or config is None:
        return
    known = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    if end not in known:
        config.eos_token_id = [*(number for number in known if number is not None), end]


def _difference(ours: dict[str, int], theirs: dict[str, int]) -> str:
    """The first id that two vocabularies give to different tokens; empty if there is none."""
    by_id = {number: token for token, number in theirs.items()}
    for token, number in sorted(ours.items(), key=lambda item: item[1]):
        if by_id.get(number, token) != token or theirs.get(token, number) != number:
            return f"id {number} is {token!r}, the teacher's {by_id.get(number)!r}"
    return ""


def _load(checkpoint: Checkpoint, task: CausalLM, *, tokenizer: Checkpoint, warnings: StageWarnings) -> Loaded:
    config = load_config(checkpoint, warnings=warnings)
    what = f"{checkpoint.field}: {checkpoint.uri}"
    if not _is_supported(config):
        raise CheckpointInvalid(
            f"{what} is a {config.model_type}, which does not predict the next token; use a model type that does, "
            f"such as {KNOWN_TO_WORK}"
        )
    found = _tokenizer_of(tokenizer, warnings=warnings)
    agree_on_padding(found, config, what=what, warnings=warnings)
    model = load_whole(AutoModelForCausalLM, checkpoint, config)
    # What is saved later is float32, whatever the checkpoint was.
    model.config.dtype = torch.float32
    # transformers keeps a head with weights of its own whatever config.json says; other servers would ignore them.
    if model.get_output_embeddings().weight is not model.get_input_embeddings().weight:
        model.config.tie_word_embeddings = False
    check_fit(model, found, field=tokenizer.field, name=checkpoint.uri, max_length=task.max_length)
    return Loaded(model, found, f"{checkpoint.uri} ({checkpoint.revision})", pretrained=True)


def _tokenizer_of(checkpoint: Checkpoint, *, warnings: StageWarnings) -> Any:
    found, what = load_tokenizer(checkpoint), f"{checkpoint.field}: the tokenizer of {checkpoint.uri}"
    warn_of_other_tokens(checkpoint, found, what=what, warnings=warnings)
    return found


def _check_reads(loaded: Loaded, task: CausalLM, tokenizer: Checkpoint, *, warnings: StageWarnings) -> None:
    """That a tokenizer has what the form of the data needs. Raises: CheckpointInvalid."""
    what = f"{tokenizer.field}: the tokenizer of {tokenizer.uri}"
    if task.dataset.messages is not None:
        check_template(loaded.tokenizer, what=what, warnings=warnings)
        _stop_at(end_of_answers(loaded.tokenizer), loaded.model)
    else:
        _check_end(loaded.tokenizer, what=what)
        _stop_at(loaded.tokenizer.eos_token_id, loaded.model)


def _check_end(tokenizer: Any, *, what: str) -> None:
    if tokenizer.eos_token_id is None:
        raise CheckpointInvalid(f"{what} has no end token to end each text with; set eos_token and save it again")


def _is_supported(config: Any) -> bool:
    return type(config) in MODEL_FOR_CAUSAL_LM_MAPPING


def _new(config: Any) -> Any:
    return AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]  # half typed
