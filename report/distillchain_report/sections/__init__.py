"""The sections of the report, found by file: one module or folder per task type. See `Section`."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Mapping
from typing import Any

from distillchain_report.section import Section


def section_of(task: Mapping[str, Any]) -> Section[Any]:
    """The section of a task, as a recipe or spec has it; one that adds nothing if its type has no file here."""
    name = _module_name(str(task.get("type", "")))
    # The name comes from a store: it is compared with the files here and never imported as it is.
    if name not in {module.name for module in pkgutil.iter_modules(__path__)}:
        return Section(task)
    section: type[Section[Any]] = importlib.import_module(f"{__name__}.{name}").SECTION
    return section(task)


def _module_name(task_type: str) -> str:
    """`causal_lm` for `CausalLM`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", task_type).lower()
