"""Models on torch's meta device, where tensors have shapes and no memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import init
from torch.overrides import TorchFunctionMode

# As functions of torch.nn.init too, which call the methods where no mode sees them.
RANDOM: frozenset[Callable[..., Any]] = frozenset(
    {Tensor.normal_, Tensor.uniform_, init.normal_, init.uniform_, init.kaiming_normal_, init.kaiming_uniform_}
)


class QuickMeta(TorchFunctionMode):
    """Within, what torch does to a tensor without memory in Python is left out or done in another way.

    For these functions torch imports sympy and its compiler, which takes a second. transformers builds every model on
    the meta device before it reads the weights.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """The result of `func`."""
        given = kwargs or {}
        tensor = args[0] if args else given.get("tensor")
        if isinstance(tensor, Tensor) and tensor.is_meta:
            if func in RANDOM:
                return tensor  # it has no values that could be random
            if func is torch.empty_like and set(given) == {"device"} and tensor.is_contiguous():
                return torch.empty(tensor.shape, dtype=tensor.dtype, device=given["device"])
        return func(*args, **given)
