"""Where the layers and projections of a model are, and what they compute, for many architectures.

Hooks and not `output_hidden_states`: values of attention have no such switch, and a model's own code may lack it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from distillchain_trainer.engine.device.compiled import largest_stack
from distillchain_trainer.errors import CheckpointInvalid

PROJECTIONS = {
    "Query": ("query", "q_lin", "q_proj"),
    "Key": ("key", "k_lin", "k_proj"),
    "Value": ("value", "v_lin", "v_proj"),
}
"""Names of the linear layers of attention: of BERT and its relatives, of DistilBERT, of Llama, Qwen and others."""


def layers_of(model: Any, *, what: str) -> list[nn.Module]:
    """The transformer layers, first to last. Raises: CheckpointInvalid for a model that shares or hides them."""
    layers = largest_stack(model, at_least=1)
    count = model.config.get_text_config().num_hidden_layers
    if len(layers) != count:
        raise CheckpointInvalid(
            f"{what}: a {model.config.model_type} of {count} layers has {len(layers)} modules for them, expected one "
            "for each; distillation.hidden cannot tell its layers apart: remove it, or use another architecture"
        )
    return layers


def projection_of(layer: nn.Module, relation: str, *, what: str, model_type: str) -> nn.Module:
    """The linear layer that makes queries, keys or values. Raises: CheckpointInvalid if there is not exactly one."""
    names = PROJECTIONS[relation]
    found: list[nn.Module] = [
        module
        for path, module in layer.named_modules()
        # A layer with a LoRA adapter is another module around the linear one, and has its name.
        if path.rpartition(".")[2] in names and isinstance(getattr(module, "base_layer", module), nn.Linear)
    ]
    if len(found) != 1:
        raise CheckpointInvalid(
            f"{what}: a layer of {model_type} has {len(found)} linear layers named {', '.join(names)}, expected one; "
            "use hidden.objective HiddenMSE, which needs none, or another architecture"
        )
    return found[0]


class Recorder:
    """Keeps what some modules return in a forward pass of `model`, until the next `take`.

    What they return after `take` is not kept: where activations are recomputed to save memory, the backward pass calls
    layers a second time.

    Args:
        modules: of the model, by the name under which their outputs are kept.
        inputs: modules whose first input is kept.
        is_trained: the pass of interest has gradients. A pass that has not, as when a student is measured, is ignored;
            and the other way round.
    """

    def __init__(
        self,
        model: nn.Module,
        modules: Mapping[str, nn.Module],
        inputs: Mapping[str, nn.Module] | None = None,
        *,
        is_trained: bool,
    ) -> None:
        self._is_trained = is_trained
        self._names = [*modules, *(inputs or {})]
        self._kept: dict[str, Tensor] = {}
        self._is_open = False
        self._hooks = [model.register_forward_pre_hook(self._open)]
        self._hooks += [module.register_forward_hook(self._keep_output(name)) for name, module in modules.items()]
        self._hooks += [
            module.register_forward_pre_hook(self._keep_input(name), with_kwargs=True)
            for name, module in (inputs or {}).items()
        ]

    def take(self) -> dict[str, Tensor]:
        """What the last pass has computed. Raises: RuntimeError for a module that was not called by name."""
        # Compiled code may skip hooks. The mode of the step is then given up, which needs an error.
        if missing := [name for name in self._names if name not in self._kept]:
            raise RuntimeError(f"no output was recorded of {', '.join(missing)}")
        kept, self._kept, self._is_open = self._kept, {}, False
        return kept

    def close(self) -> None:
        """Removes the hooks."""
        for hook in self._hooks:
            hook.remove()
        self._kept = {}

    def _open(self, *_: object) -> None:
        if self._is_wanted:
            self._kept, self._is_open = {}, True

    @property
    def _is_wanted(self) -> bool:
        return torch.is_grad_enabled() is self._is_trained

    def _keep_output(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def keep(_: nn.Module, __: Any, output: Any) -> None:
            if self._is_open and self._is_wanted:
                # Some layers return a tuple, whose first part is the hidden state.
                self._kept[name] = output[0] if isinstance(output, tuple) else output

        return keep

    def _keep_input(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def keep(_: nn.Module, positional: Any, named: Any) -> None:
            if self._is_open and self._is_wanted:
                self._kept[name] = positional[0] if positional else named["hidden_states"]

        return keep
