"""Loads the weights of a checkpoint whole: nothing missing, nothing left over, every number finite, all in float32."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from distillchain_trainer.errors import CheckpointInvalid, first_line, translate_unforeseen
from distillchain_trainer.models.checkpoints import Checkpoint

# Buffers that older versions of transformers saved and that are now computed.
COMPUTED_BUFFERS = re.compile(r"(^|\.)(position_ids|token_type_ids|inv_freq|masked_bias|attn\.bias|attention\.bias)$")
POOLER = re.compile(r"(^|\.)pooler\.")
# Heads of pretraining. A classifier that was fine-tuned with them has them beside its own head and does not use them.
PRETRAINING_HEADS = (
    "cls.", "lm_head.", "final_logits_bias", "predictions.", "sop_classifier.", "vocab_transform.", "vocab_layer_norm.",
    "vocab_projector.", "generator_predictions.", "generator_lm_head.", "discriminator_predictions.", "lm_predictions.",
    "mask_predictions.", "pred_layer.", "lm_loss.",
)  # fmt: skip
MAX_NAMED = 4


def load_whole(auto: Any, checkpoint: Checkpoint, config: Any) -> Any:
    """The model of `config`, every weight from the checkpoint.

    Args:
        auto: class of transformers, such as AutoModelForSequenceClassification.
    Raises: CheckpointInvalid naming a tensor that is missing, left over, of another shape or not finite.
    """
    model, found = _load(auto, checkpoint, config)
    _check_complete(checkpoint, found["missing_keys"], found["unexpected_keys"])
    _check_nothing_left(checkpoint, (key for key in found["unexpected_keys"] if not _is_harmless(model, key)))
    return model


def load_base(auto: Any, checkpoint: Checkpoint, config: Any) -> tuple[Any, list[str]]:
    """The model of `config` without a head; heads of other tasks in the checkpoint are not loaded.

    Returns: the model, and the names of tensors that the checkpoint does not have and that are newly initialised:
        those of a pooler, which a masked language model is trained without.
    Raises: as load_whole.
    """
    model, found = _load(auto, checkpoint, config)
    new = sorted(key for key in found["missing_keys"] if POOLER.search(key))
    _check_complete(checkpoint, set(found["missing_keys"]) - set(new), found["unexpected_keys"])
    _check_nothing_left(checkpoint, (key for key in found["unexpected_keys"] if _is_inside(model, key)))
    return model, new


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within, random numbers on the CPU depend on `seed` alone; afterwards they continue as if nothing had happened."""
    # devices=[]: models are built on the CPU. By default, fork_rng also saves the state of every GPU.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def shorten(names: Iterable[str]) -> str:
    """Some names of tensors for a message."""
    listed = sorted(names)
    more = f" and {len(listed) - MAX_NAMED} more" if len(listed) > MAX_NAMED else ""
    return ", ".join(listed[:MAX_NAMED]) + more


def leaves_out_weights() -> bool:
    """Whether models are built without weights now: torch's default device is `meta`. See outline.py."""
    return torch.get_default_device().type == "meta"


def _load(auto: Any, checkpoint: Checkpoint, config: Any) -> tuple[Any, dict[str, Any]]:
    # Only the outputs of the task are read. A batch would need memory for the states and attentions of all layers.
    for part in (config, config.get_text_config()):
        part.return_dict, part.output_hidden_states, part.output_attentions = True, False, False
    if leaves_out_weights():
        # In the type and mode of from_pretrained.
        return auto.from_config(config, dtype=torch.float32).eval(), {"missing_keys": (), "unexpected_keys": ()}
    try:
        with seeded(0):  # whatever it initialises is refused or replaced
            model, found = auto.from_pretrained(
                checkpoint.folder,
                config=config,
                # Also for weights in half precision: AdamW would lose small updates in them.
                dtype=torch.float32,
                use_safetensors=True,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,  # they are refused below, by name
                output_loading_info=True,
            )
    except Exception as error:  # safetensors, missing packages and each architecture have errors of their own
        raise translate_unforeseen(error) or CheckpointInvalid(
            f"{checkpoint.field}: the weights of {checkpoint.uri} cannot be loaded: {first_line(error)}; "
            "copy the checkpoint again, and see that config.json and weights belong together"
        ) from error
    for name, in_weights, in_model in sorted(found["mismatched_keys"]):
        raise CheckpointInvalid(
            f"{checkpoint.field}: config.json and weights of {checkpoint.uri} do not belong together: {name} is "
            f"{list(in_weights)} in the weights and {list(in_model)} by config.json; copy both from one checkpoint"
        )
    _check_finite(checkpoint, model)
    return model, found


def _check_complete(checkpoint: Checkpoint, missing: Iterable[str], left_over: Iterable[str]) -> None:
    names, first = shorten(missing), min(missing, default="")
    wrapped = next((key for key in left_over if key.endswith(f".{first}")), None)
    if names and wrapped:
        raise CheckpointInvalid(
            f"{checkpoint.field}: the tensors of {checkpoint.uri} have the names of a wrapped model, such as {wrapped} "
            f"instead of {first}; save the model within the wrapper (of torch.compile or DataParallel, for example) "
            "with save_pretrained()"
        )
    if names:
        raise CheckpointInvalid(
            f"{checkpoint.field}: {checkpoint.uri} lacks weights of its own architecture ({names}); copy the "
            "checkpoint again, and see that config.json and weights belong together"
        )


def _check_nothing_left(checkpoint: Checkpoint, left_over: Iterable[str]) -> None:
    names = list(left_over)
    if not names:
        return
    # peft names its tensors so. Without the adapter, the base model alone would be measured.
    if any("lora_" in name for name in names):
        raise CheckpointInvalid(
            f"{checkpoint.field}: {checkpoint.uri} has weights of an adapter ({shorten(names)}); merge it into its "
            "base with peft's merge_and_unload() and save the result with save_pretrained()"
        )
    raise CheckpointInvalid(
        f"{checkpoint.field}: config.json and weights of {checkpoint.uri} do not belong together: the weights have "
        f"{shorten(names)}, for which config.json has no place; copy both from one checkpoint"
    )


def _check_finite(checkpoint: Checkpoint, model: Any) -> None:
    for name, parameter in model.named_parameters():
        # The sum is finite only if all are (or if huge values overflow it), and needs no second copy of the tensor.
        if not torch.isfinite(parameter.detach().sum()) and not torch.isfinite(parameter.detach()).all():
            raise CheckpointInvalid(
                f"{checkpoint.field}: {checkpoint.uri}: {name} has values that are not numbers (NaN or infinite); copy "
                "the checkpoint again, or use one from before its training diverged"
            )


def _is_harmless(model: Any, key: str) -> bool:
    """A tensor without effect on a complete classifier."""
    # A classifier that uses its pooler has it among its own weights, so one that is left over is not used.
    if COMPUTED_BUFFERS.search(key) or POOLER.search(key):
        return True
    # Where the model has a module of that name, the tensor belongs to it and would have an effect.
    return key.startswith(PRETRAINING_HEADS) and not hasattr(model, key.split(".")[0])


def _is_inside(model: Any, key: str) -> bool:
    """A tensor of the model itself, not of a head: the model would compute something else without it."""
    if COMPUTED_BUFFERS.search(key) or POOLER.search(key):
        return False
    prefix = f"{model.base_model_prefix}."
    return key.startswith(prefix) or key.split(".")[0] in dict(model.named_children())
