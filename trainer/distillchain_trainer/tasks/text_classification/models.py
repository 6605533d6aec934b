"""Teachers and students ready to run: weights loaded whole, classes matched by name, float32.

A teacher must be a finished classifier. A student may also be an encoder (it gets a new head) or an architecture.
"""

from __future__ import annotations

import dataclasses
import inspect
import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoTokenizer
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from distillchain_api.failures import StageError
from distillchain_api.faults import nearest
from distillchain_api.resource.spec import Architecture
from distillchain_api.tasks.text_classification import TextClassification as Task
from distillchain_trainer.errors import CheckpointInvalid, first_line
from distillchain_trainer.models import bert_hash
from distillchain_trainer.models.checkpoints import Checkpoint
from distillchain_trainer.models.loaded import Loaded
from distillchain_trainer.stage_warnings import StageWarnings
from distillchain_trainer.tasks.text_classification.labels import ClassOrder, match_classes

log = logging.getLogger(__name__)

CLASSIFIER = "ForSequenceClassification"
MAX_SANE_LENGTH = 1 << 20  # tokenizers without a limit say 10**30
OFFSET_POSITIONS = ("roberta", "camembert", "xlm-roberta", "mpnet", "longformer", "ibert", "data2vec-text", "esm")

bert_hash.register()


@dataclass(frozen=True)
class Classifier(Loaded):
    """A classifier.

    Attributes:
        named: False for the default class names LABEL_0.., whose order must be proved by measuring.
    """

    named: bool = True


def load_teacher(checkpoint: Checkpoint, task: Task, *, warnings: StageWarnings) -> Classifier:
    """A classifier of the task. Raises: CheckpointInvalid, LabelMismatch."""
    config = _load_config(checkpoint)
    if not _is_classifier(config):
        raise CheckpointInvalid(
            f"{checkpoint.field}: {checkpoint.uri} has no classifier head "
            f"({', '.join(config.architectures or []) or 'no architectures'} in config.json); "
            "fine-tune it on the task first (spec.teacher.fineTune)"
        )
    order = match_classes(_names(config), task.labels, who=f"teacher {checkpoint.uri}")
    tokenizer = load_tokenizer(checkpoint, config, task)
    model = _load_whole(AutoModelForSequenceClassification, checkpoint, config)
    columns = order.columns if order.turned else None
    return Classifier(model, tokenizer, _start(checkpoint), pretrained=True, columns=columns, named=order.named)


def load_student(
    checkpoint: Checkpoint, task: Task, *, tokenizer: Checkpoint | None, seed: int, warnings: StageWarnings
) -> Classifier:
    """A student that starts from a checkpoint; its outputs are in the order of the task where classes have names.

    Raises: CheckpointInvalid, LabelMismatch.
    """
    config = _load_config(checkpoint)
    named_tokenizer = load_tokenizer(tokenizer or checkpoint, config, task)
    start = _start(checkpoint)
    if not _is_classifier(config):
        model = _with_new_head(checkpoint, config, task, seed)
        log.info("new classifier head", extra={"checkpoint": checkpoint.uri, "classes": len(task.labels)})
        return Classifier(model, named_tokenizer, start, pretrained=True)
    order = match_classes(_names(config), task.labels, who=f"student {checkpoint.uri}")
    model = _load_whole(AutoModelForSequenceClassification, checkpoint, config)
    if order.turned:
        turn_head(model, order)
        log.info("classifier head turned to the order of the task", extra={"checkpoint": checkpoint.uri})
    return Classifier(_labelled(model, task), named_tokenizer, start, pretrained=True, named=order.named)


def build_student(
    architecture: Architecture, tokenizer: Checkpoint, task: Task, *, seed: int, field: str
) -> Classifier:
    """A student with new weights. Raises: CheckpointInvalid naming a config field that its model type does not know."""
    config = _build_config(architecture, field)
    loaded_tokenizer = load_tokenizer(tokenizer, None, task)
    if "vocab_size" not in architecture.config:
        config.vocab_size = max(len(loaded_tokenizer), loaded_tokenizer.pad_token_id + 1)
    if "pad_token_id" not in architecture.config:
        config.pad_token_id = loaded_tokenizer.pad_token_id
    _check_tokenizer(loaded_tokenizer, config, task, uri=str(architecture.model_type), field=field)
    _agree_on_padding(loaded_tokenizer, config)
    torch.manual_seed(seed)
    try:
        model = _new_classifier(_task_config(config, task))
    except (ValueError, TypeError, RuntimeError, AssertionError) as error:
        raise CheckpointInvalid(
            f"{field}.architecture: {architecture.model_type} with this config cannot be built: {first_line(error)}"
        ) from error
    return Classifier(model, loaded_tokenizer, f"architecture:{architecture.model_type}", pretrained=False)


def renew_head(model: Any, *, seed: int) -> None:
    """Gives a classifier new weights in everything outside its encoder."""
    torch.manual_seed(seed)
    fresh = type(model)(model.config)
    inside = f"{model.base_model_prefix}."
    new = {name: value for name, value in fresh.state_dict().items() if not name.startswith(inside)}
    model.load_state_dict(new, strict=False)


def turn_head(model: Any, order: ClassOrder) -> None:
    """Puts the outputs of a classifier into the order of the task."""
    classes = len(order.columns)
    inside = f"{model.base_model_prefix}."
    heads = [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module.out_features == classes and not name.startswith(inside)
    ]
    if not heads:
        raise CheckpointInvalid(f"{type(model).__name__} has no linear head whose classes could be put in order")
    columns = list(order.columns)
    with torch.no_grad():
        heads[-1].weight.copy_(heads[-1].weight[columns].clone())
        if heads[-1].bias is not None:
            heads[-1].bias.copy_(heads[-1].bias[columns].clone())


def load_tokenizer(checkpoint: Checkpoint, config: Any | None, task: Task) -> Any:
    """The tokenizer of a checkpoint, fit for the model of `config` and the length of the task.

    `config` gets the tokenizer's padding where it has none, so a model is loaded after its tokenizer.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(checkpoint.folder, trust_remote_code=False)
    except Exception as error:  # whatever is wrong in those files
        raise _unless_full(error) or CheckpointInvalid(
            f"{checkpoint.field}: the tokenizer of {checkpoint.uri} cannot be loaded: {first_line(error)}"
        ) from error
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise CheckpointInvalid(f"{checkpoint.field}: the tokenizer of {checkpoint.uri} has no padding token")
        tokenizer.pad_token = tokenizer.eos_token
    if config is not None:
        _check_tokenizer(tokenizer, config, task, uri=checkpoint.uri, field=checkpoint.field)
        _agree_on_padding(tokenizer, config)
    return tokenizer


def _agree_on_padding(tokenizer: Any, config: Any) -> None:
    """The model's own padding holds: positions may be counted from it (RoBERTa), or the last token found by it."""
    own = config.get_text_config()
    vocabulary = getattr(own, "vocab_size", None) or len(tokenizer)
    pad_id = getattr(own, "pad_token_id", None)  # not every config has one
    if pad_id is None or not 0 <= pad_id < vocabulary:
        own.pad_token_id = tokenizer.pad_token_id
    elif pad_id != tokenizer.pad_token_id:
        token = tokenizer.convert_ids_to_tokens(pad_id)
        if token in tokenizer.all_special_tokens:  # another word would be cut out of texts as a special one
            tokenizer.pad_token = token
        else:
            log.warning(
                "tokenizer and config.json name different padding; config.json's is used",
                extra={"tokenizer": tokenizer.pad_token_id, "config": pad_id},
            )


def _check_tokenizer(tokenizer: Any, config: Any, task: Task, *, uri: str, field: str) -> None:
    vocabulary = getattr(config, "vocab_size", None)
    if vocabulary is not None and len(tokenizer) > vocabulary:
        raise CheckpointInvalid(
            f"{field}: the tokenizer has {len(tokenizer)} words, the model {uri} has embeddings for {vocabulary}; "
            "use the tokenizer it was trained with"
        )
    longest = _longest(tokenizer, config)
    if task.max_length > longest:
        raise CheckpointInvalid(
            f"spec.task.maxLength: got {task.max_length}, but {uri} reads at most {longest} tokens; lower it"
        )


def _longest(tokenizer: Any, config: Any) -> int:
    """Tokens the model has positions for."""
    limits = [MAX_SANE_LENGTH]
    if tokenizer.model_max_length and tokenizer.model_max_length < MAX_SANE_LENGTH:
        limits.append(int(tokenizer.model_max_length))
    positions = getattr(config, "max_position_embeddings", None)
    if isinstance(positions, int) and positions > 0:
        # RoBERTa and its kin count positions from padding_idx + 1.
        offset = (config.pad_token_id or 0) + 1 if config.model_type in OFFSET_POSITIONS else 0
        limits.append(positions - offset)
    return min(limits)


def _load_config(checkpoint: Checkpoint) -> Any:
    try:
        return AutoConfig.from_pretrained(checkpoint.folder, trust_remote_code=False)
    except Exception as error:  # whatever is wrong in that file
        raise _unless_full(error) or CheckpointInvalid(
            f"{checkpoint.field}: config.json of {checkpoint.uri} cannot be read: {first_line(error)}"
        ) from error


def _is_classifier(config: Any) -> bool:
    return any(name.endswith(CLASSIFIER) for name in config.architectures or [])


def _names(config: Any) -> list[str]:
    return [str(config.id2label[index]) for index in sorted(config.id2label)]


def _load_whole(auto: Any, checkpoint: Checkpoint, config: Any, *, may_miss: tuple[str, ...] = ()) -> Any:
    """The model of `config` with every weight from the checkpoint, in float32."""
    try:
        model, found = auto.from_pretrained(
            checkpoint.folder,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except Exception as error:  # safetensors, shape and architecture errors alike
        raise _unless_full(error) or CheckpointInvalid(
            f"{checkpoint.field}: the weights of {checkpoint.uri} cannot be loaded: {first_line(error)}; "
            "copy the checkpoint again, and see that config.json and weights belong together"
        ) from error
    missing = sorted(name for name in found["missing_keys"] if not name.startswith(may_miss))
    if missing or found["mismatched_keys"]:
        first = missing[0] if missing else str(next(iter(found["mismatched_keys"]))[0])
        raise CheckpointInvalid(
            f"{checkpoint.field}: {checkpoint.uri} lacks weights of its own architecture ({first}"
            f"{f' and {len(missing) - 1} more' if len(missing) > 1 else ''}); copy the checkpoint again"
        )
    return model


def _with_new_head(checkpoint: Checkpoint, config: Any, task: Task, seed: int) -> Any:
    """The encoder of any checkpoint under a new classifier; heads of other tasks are left behind."""
    torch.manual_seed(seed)
    # A masked-language model has no pooler: it starts new, as the head does.
    encoder = _load_whole(AutoModel, checkpoint, config, may_miss=("pooler.",))
    try:
        model = _new_classifier(_task_config(config, task))
    except ValueError as error:
        raise CheckpointInvalid(
            f"{checkpoint.field}: {checkpoint.uri} is a {config.model_type}, which has no form that classifies text"
        ) from error
    kept = model.base_model.load_state_dict(encoder.state_dict(), strict=False)
    if kept.missing_keys:
        raise CheckpointInvalid(f"{checkpoint.field}: {checkpoint.uri} lacks weights ({kept.missing_keys[0]})")
    return model


def _new_classifier(config: Any) -> Any:
    return AutoModelForSequenceClassification.from_config(config)  # type: ignore[no-untyped-call]  # half typed


def _task_config(config: Any, task: Task) -> Any:
    config.id2label = dict(enumerate(task.labels))
    config.label2id = {name: index for index, name in enumerate(task.labels)}
    config.problem_type = "single_label_classification"
    config.dtype = torch.float32
    return config


def _labelled(model: Any, task: Task) -> Any:
    _task_config(model.config, task)
    return model


def _build_config(architecture: Architecture, field: str) -> Any:
    kind = architecture.model_type
    known = CONFIG_MAPPING.keys()
    found = next((name for name in known if name.replace("-", "_") == kind.replace("-", "_")), None)
    if found is None:
        raise CheckpointInvalid(f"{field}.architecture.modelType: got {kind}; {nearest(kind, list(known))}")
    config_class = CONFIG_MAPPING[found]
    fields = _config_fields(config_class)
    for name in architecture.config:
        if name not in fields:
            raise CheckpointInvalid(
                f"{field}.architecture.config.{name}: {kind} has no such field; {nearest(name, sorted(fields))}"
            )
    try:
        return config_class(**architecture.config)
    except Exception as error:  # the class's own validation
        raise CheckpointInvalid(f"{field}.architecture.config: {_last_line(error)}") from error


def _config_fields(config_class: Any) -> set[str]:
    """What the class itself declares; those of every config (id2label, dtype, ...) are ours to set."""
    if dataclasses.is_dataclass(config_class):
        common = {item.name for item in dataclasses.fields(AutoConfig.for_model("bert").__class__.__mro__[1])}
        return {item.name for item in dataclasses.fields(config_class)} - (common - {"tie_word_embeddings"})
    return set(inspect.signature(config_class.__init__).parameters) - {"self", "kwargs"}


def _start(checkpoint: Checkpoint) -> str:
    return f"{checkpoint.uri} ({checkpoint.revision})"


def _last_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()[:300]


def _unless_full(error: BaseException) -> StageError | None:
    """A full disk or memory is no fault of the checkpoint."""
    from distillchain_trainer.errors import translate_unforeseen

    return translate_unforeseen(error)
