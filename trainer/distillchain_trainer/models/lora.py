"""LoRA (Hu et al. 2021): a trained product of two small matrices beside each frozen one, and its merge at the end.

peft computes. The adapter is put into the model in place, so the rest of the trainer sees a model of the same class.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from distillchain_api.faults import got
from distillchain_api.resource.lora import Lora
from distillchain_trainer.engine.device.precision import keep_products_in_bfloat16
from distillchain_trainer.errors import CheckpointInvalid
from distillchain_trainer.models.loading import POOLER, seeded

SHELL = "model"  # name of the model within the module that peft sees


def add_adapter(model: Any, lora: Lora, *, seed: int, field: str) -> None:
    """Freezes a model but for a new adapter and the head of its task. The answers stay the same until it is trained.

    The head of a language model belongs to its pretrained weights, so it is frozen too. A pooler is part of the head:
    a checkpoint may lack one, and then it starts with random numbers.

    Args:
        seed: of the adapter's first matrix; the second one is zero.
        field: of the spec that asks for it, for messages.
    Raises: CheckpointInvalid for names that no linear layer has, and for layers that share a weight.
    """
    # Imported here, because it takes a second that other students need not wait for.
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.lora import LoraLayer

    head = list(_head(model, field))
    targets = _targets(model, lora, field=field)
    _refuse_shared_weights(model, targets, field=field)
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # declared as int; peft only divides it by the rank
        lora_dropout=lora.dropout,
        target_modules=[f"{SHELL}.{target}" for target in targets],
        bias="none",
    )
    # Within a module without a config. For many mixtures of experts, peft would take other layers than those that it is
    # given, because their names in transformers were other ones once.
    shell = nn.ModuleDict({SHELL: model})
    with seeded(seed), warnings.catch_warnings():
        # It warns of each Conv1D of GPT-2, whose weight is transposed, and continues with the right setting.
        warnings.simplefilter("ignore")
        inject_adapter_in_model(config, shell)
    found = {name for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    if found != set(targets):
        raise CheckpointInvalid(
            f"{field}: peft adapts other layers of this {model.config.model_type} than expected "
            f"({', '.join(sorted(found ^ set(targets))[:3])}); remove lora"
        )
    for parameter in head:
        parameter.requires_grad_(True)


def keep_frozen_in_bfloat16(model: Any) -> None:
    """Keeps frozen linear layers as autocast would convert them, and their float32 weights on the host, to be merged.

    Call it before the model goes to a GPU.
    """
    frozen = {name: weight.detach() for name, weight in model.named_parameters() if not weight.requires_grad}
    keep_products_in_bfloat16(model, "bfloat16", frozen_only=True)
    model.frozen_on_host = {name: own for name, own in frozen.items() if model.get_parameter(name).dtype != own.dtype}


def merge_adapter(model: Any) -> None:
    """Adds the adapter to the weights and removes it. A model without one stays as it is.

    After `keep_frozen_in_bfloat16`, the merged model is on the host, because a GPU may have no room for it in float32.
    """
    if not has_adapter(model):
        return
    if frozen := model.__dict__.pop("frozen_on_host", None):
        for name, weight in frozen.items():
            model.get_parameter(name).data = weight
        model.cpu()
    from peft.tuners.lora import LoraLayer

    with _full_precision():
        # By all of their paths: some architectures use one layer in several places.
        for path, module in list(model.named_modules(remove_duplicate=False)):
            if isinstance(module, LoraLayer):
                if not module.merged:
                    module.merge()
                parent, _, name = path.rpartition(".")
                setattr(model.get_submodule(parent), name, module.get_base_layer())
    for parameter in model.parameters():
        parameter.requires_grad_(True)


def has_adapter(model: Any) -> bool:
    """Whether a model has an adapter that is not merged yet."""
    return any(".lora_A." in name for name, _ in model.named_parameters())


def trained_parameters(model: Any) -> int:
    """Number of parameters that a training changes, shared ones counted once."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def _head(model: Any, field: str) -> Iterator[nn.Parameter]:
    body = model.base_model
    if body is model:
        raise CheckpointInvalid(
            f"{field}: {type(model).__name__} does not keep its head apart from its other weights, so LoRA cannot "
            "freeze these alone; remove lora"
        )
    # Of a language model, the head belongs to the pretrained weights.
    if model.get_output_embeddings() is None:
        for module in model.children():
            if module is not body:
                yield from module.parameters()
    for name, parameter in body.named_parameters():
        if POOLER.search(name):
            yield parameter


def _targets(model: Any, lora: Lora, *, field: str) -> list[str]:
    """Full names of the layers that get an adapter."""
    prefix = model.base_model_prefix
    layers = [
        f"{prefix}.{name}"
        for name, module in model.base_model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and not POOLER.search(f"{name}.")
    ]
    if lora.target_modules is None:
        if not layers:
            raise CheckpointInvalid(f"{field}: a {model.config.model_type} has no linear layers; remove lora")
        return layers
    unknown = [target for target in lora.target_modules if not _named(target, layers)]
    if unknown:
        known = sorted({layer.rpartition(".")[2] for layer in layers})
        raise CheckpointInvalid(
            f"{field}.targetModules: {got(unknown)}, expected names of linear layers of this "
            f"{model.config.model_type}: {', '.join(known)}"
        )
    return [layer for target in lora.target_modules for layer in _named(target, layers)]


def _refuse_shared_weights(model: Any, targets: Iterable[str], *, field: str) -> None:
    """Raises: CheckpointInvalid. The merge would add the adapters of all layers to the weight that they share."""
    users: dict[int, str] = {}
    for target in targets:
        first = users.setdefault(id(model.get_submodule(target).weight), target)
        if first != target:
            raise CheckpointInvalid(
                f"{field}: {first} and {target} of this {model.config.model_type} share one weight, expected layers "
                "that share none, because each adapter is added to the weight of its layer; name others in "
                "targetModules, or remove lora"
            )


def _named(target: str, layers: Iterable[str]) -> list[str]:
    """Layers of a name, as peft understands it: the whole path, or its end after a dot."""
    return [layer for layer in layers if layer == target or layer.endswith(f".{target}")]


@contextmanager
def _full_precision() -> Iterator[None]:
    """Within, products are those of float32: TF32 and autocast would round the sum that is kept for good."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.no_grad():
            yield
    finally:
        torch.set_float32_matmul_precision(before)
