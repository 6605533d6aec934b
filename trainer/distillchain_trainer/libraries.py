"""The libraries that compute, imported without parts that no stage uses: imports take most of a short stage's time."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# transformers imports scipy.optimize, which takes half a second, for the losses of object detection.
UNUSED_BY_TRANSFORMERS = ("scipy",)

# The fork server sets it in a process that is forked again when it needs the libraries.
instead: Callable[[], object] | None = None


def import_libraries() -> None:
    """Imports torch and transformers."""
    if instead is not None:
        instead()
    # If a part of transformers is imported already, it has found scipy, and hiding it would end the import.
    with _hidden(() if "transformers" in sys.modules else UNUSED_BY_TRANSFORMERS):
        importlib.import_module("transformers.modeling_utils")


@contextmanager
def _hidden(packages: tuple[str, ...]) -> Iterator[None]:
    """Within, packages that are not imported yet seem not to be installed."""
    hidden = [name for name in packages if name not in sys.modules]
    # None in sys.modules makes an import fail, and importlib.util.find_spec find nothing.
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # typeshed knows modules only
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]
