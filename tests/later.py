"""Modules that take seconds to load, imported when a test first uses them: a worker of the quick loop reads all files."""

from __future__ import annotations

import importlib
from typing import Any


class Later:
    """Stands for a module: `torch = Later("torch")`."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("_"):  # pytest asks everything in a test file whether it is a fixture
            raise AttributeError(attribute)
        return getattr(importlib.import_module(self._name), attribute)
