"""The configuration of a checkpoint or of a new architecture. Code that a checkpoint brings is never run."""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Mapping
from typing import Any

from transformers import AutoConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from distillchain_api.faults import got, nearest
from distillchain_api.resource.student import Architecture
from distillchain_trainer.errors import CheckpointInvalid, first_line, translate_unforeseen
from distillchain_trainer.models import bert_hash
from distillchain_trainer.models.checkpoints import Checkpoint
from distillchain_trainer.stage_warnings import StageWarnings

bert_hash.register()

ATTENTION_FIELDS = ("attn_implementation", "_attn_implementation")


def load_config(checkpoint: Checkpoint, *, warnings: StageWarnings) -> Any:
    """The configuration of a checkpoint. Raises: CheckpointInvalid for a kind that cannot be loaded."""
    document, what = checkpoint.config(), f"{checkpoint.field}: {checkpoint.uri}"
    _check_can_be_loaded(document, what)
    if "auto_map" in document:
        warnings.add(
            f"{what} brings code of its own (auto_map in config.json), which is not run: the {document['model_type']} "
            "of transformers is used instead"
        )
    try:
        config = AutoConfig.from_pretrained(checkpoint.folder, trust_remote_code=False)
        # The kernels that the checkpoint was trained with, such as those of FlashAttention, may not be installed here.
        kernels = {name for name in ATTENTION_FIELDS if document.get(name, "eager") != "eager"}
        if kernels:
            config = type(config).from_dict({name: document[name] for name in document.keys() - kernels})
    except Exception as error:  # each class of transformers checks its own fields
        raise translate_unforeseen(error) or CheckpointInvalid(
            f"{checkpoint.field}: config.json of {checkpoint.uri} cannot be read: {last_line(error)}; "
            "correct that field, or copy the checkpoint again"
        ) from error
    return config


def _check_can_be_loaded(document: Mapping[str, Any], what: str) -> None:
    """Raises: CheckpointInvalid for a config.json that transformers cannot load, or would load as something else."""
    kind = document.get("model_type")
    # Before AutoConfig is called, whose message would advise to trust the checkpoint's code.
    if kind not in CONFIG_MAPPING:
        if "auto_map" in document:
            raise CheckpointInvalid(
                f"{what} needs code of its own (auto_map in config.json), which is never run; use an architecture of "
                "transformers or bert_hash"
            )
        raise CheckpointInvalid(
            f"{what} is of model_type {json.dumps(kind)}, which is not known here; use an architecture of transformers "
            "or bert_hash"
        )
    names = document.get("id2label") or {}
    if not isinstance(names, dict) or not all(index.isdecimal() for index in names):
        raise CheckpointInvalid(
            f"{what}: config.json: id2label: {got(names)}, expected a name for each number, such as "
            '{"0": "negative", "1": "positive"}'
        )
    if document.get("quantization_config"):
        raise CheckpointInvalid(
            f"{what} is quantized (quantization_config in config.json: {_method(document['quantization_config'])}), "
            "and quantized weights cannot be trained or compared here; use the checkpoint from before its quantization"
        )


def build_config(architecture: Architecture, *, field: str) -> Any:
    """The configuration of new weights. Raises: CheckpointInvalid naming a field that the model type does not have."""
    kind = architecture.model_type
    known = CONFIG_MAPPING.keys()
    # Names have hyphens or underscores (deberta-v2, bert_hash); either spelling is accepted.
    found = next((name for name in known if name.replace("-", "_") == kind.replace("-", "_")), None)
    if found is None:
        raise CheckpointInvalid(f"{field}.architecture.modelType: got {kind}; {nearest(kind, list(known))}")
    config_class = CONFIG_MAPPING[found]
    fields = _fields_of(config_class)
    # transformers keeps unknown fields without an error, so a typo would have no effect.
    for name in architecture.config:
        if name not in fields:
            raise CheckpointInvalid(
                f"{field}.architecture.config.{name}: {kind} has no such field; {nearest(name, sorted(fields))}"
            )
    try:
        return config_class(**architecture.config)
    except Exception as error:  # each class of transformers checks its own fields
        raise translate_unforeseen(error) or CheckpointInvalid(
            f"{field}.architecture.config: {last_line(error)}"
        ) from error


def last_line(error: BaseException) -> str:
    """Of an error of transformers: its first lines only say that a check failed."""
    lines = str(error).strip().splitlines()
    return lines[-1].strip()[:300] if lines else first_line(error)


def _method(quantization: Any) -> str:
    method = quantization.get("quant_method") if isinstance(quantization, dict) else None
    return str(method or "unnamed method")


def _fields_of(config_class: Any) -> set[str]:
    """Fields that the class itself declares; those that every config has (id2label, dtype, ...) are set by us."""
    if dataclasses.is_dataclass(config_class):
        # __mro__[1]: the base class of all configurations, whose name differs between releases of transformers.
        # Its tie_word_embeddings is allowed, because it changes the architecture.
        common = {item.name for item in dataclasses.fields(AutoConfig.for_model("bert").__class__.__mro__[1])}
        return {item.name for item in dataclasses.fields(config_class)} - (common - {"tie_word_embeddings"})
    return set(inspect.signature(config_class.__init__).parameters) - {"self", "kwargs"}
