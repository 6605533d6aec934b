"""The libraries that compute, imported without parts that no stage uses: imports take most of a short stage's time.

Each part is left out in a way that a release of transformers without it does not notice. What is left out and needed
after all, such as torch's compiler, is imported where it is used.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

# scipy: transformers imports scipy.optimize for the losses of object detection. accelerate: for models that are divided
# over devices or loaded in parts.
UNUSED_BY_TRANSFORMERS = ("scipy", "accelerate")
SPLIT_TENSORS = "torch.distributed.tensor"
COMPILER = "torch._dynamo"  # with torch._inductor, sympy and triton
DECORATORS_OF_COMPILER = ("allow_in_graph", "assume_constant_result", "disable")

# The fork server sets it in a process that is forked again when it needs the libraries.
instead: Callable[[], object] | None = None


def import_libraries() -> None:
    """Imports torch and transformers."""
    if instead is not None:
        instead()
    with ExitStack() as without:
        without.enter_context(hidden(UNUSED_BY_TRANSFORMERS))
        without.enter_context(_without_compiler())
        _leave_out_attentions()
        without.enter_context(_without_names_of_models())
        for name in ("modeling_utils", "masking_utils"):
            importlib.import_module(f"transformers.{name}")


@contextmanager
def hidden(names: tuple[str, ...]) -> Iterator[None]:
    """Within, packages and modules that are not imported yet seem not to be installed."""
    absent = [name for name in names if name not in sys.modules]
    # None in sys.modules makes an import fail, and importlib.util.find_spec find nothing.
    sys.modules.update(dict.fromkeys(absent))  # type: ignore[arg-type]  # typeshed knows modules only
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]


@contextmanager
def _without_compiler() -> Iterator[None]:
    """Within, the package of torch's compiler is a shell: its modules can be imported, but it is not.

    transformers decorates functions for float8 and flex attention with it, which no stage calls.
    """
    import torch

    if COMPILER in sys.modules:
        yield
        return
    shell: Any = ModuleType(COMPILER)
    shell.__path__ = [str(Path(torch.__file__).parent / "_dynamo")]
    for name in DECORATORS_OF_COMPILER:
        setattr(shell, name, _undecorated)
    sys.modules[COMPILER] = shell
    try:
        yield
    finally:
        if sys.modules.get(COMPILER) is shell:
            del sys.modules[COMPILER]
        if vars(torch).get("_dynamo") is shell:
            del torch._dynamo


def _undecorated(function: Any = None, *_: object, **__: object) -> Any:
    return _undecorated if function is None else function


def _leave_out_attentions() -> None:
    """Flex attention, and tensors of which ranks hold parts unless this is one of several; both import sympy."""
    import transformers.utils

    names = ["is_torch_flex_attn_available"]
    if "WORLD_SIZE" not in os.environ:
        names.append("is_torch_distributed_available")
    for name in names:
        for module in (transformers.utils, transformers.utils.import_utils):
            if hasattr(module, name):
                setattr(module, name, _no)


def _no() -> bool:
    return False


@contextmanager
def _without_names_of_models() -> Iterator[None]:
    """Within, the package of all models does not read their files to learn their names.

    transformers has read them before, for its own names. We and its auto classes import models by module.
    """
    from transformers.utils import import_utils

    real = import_utils.define_import_structure

    def define(path: str, prefix: str | None = None) -> Any:
        return {} if Path(path).parts[-3:] == ("transformers", "models", "__init__.py") else real(path, prefix)

    import_utils.define_import_structure = define  # type: ignore[assignment]  # without its cache
    try:
        importlib.import_module("transformers.models")
        yield
    finally:
        import_utils.define_import_structure = real
