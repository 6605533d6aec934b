"""Import a slow module on first use.

`make check` imports every test file in each of its workers. A file whose unit tests need torch would cost seconds in
all of them.
"""

from __future__ import annotations

import importlib
from typing import Any


class Later:
    """A module that is imported when one of its attributes is first read: `torch = Later("torch")`."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("_"):  # pytest looks for fixture marks on every object in a test file
            raise AttributeError(attribute)
        return getattr(importlib.import_module(self._name), attribute)
