"""Names of labels that are numbers, which a label column may hold as text or as a number."""

from __future__ import annotations

import re
from collections.abc import Sequence

from distillchain_api.faults import expected

NUMBER = re.compile(r"\s*[-+]?\d+(\.\d*)?\s*")


def number_fault(labels: Sequence[str]) -> str | None:
    """What is wrong with labels if two of them are the same number; None: nothing."""
    numbers = [float(name) for name in labels if NUMBER.fullmatch(name)]
    if len(set(numbers)) == len(numbers):
        return None
    # A label column of numbers could mean either: 1 is both "1" and "1.0".
    return expected(list(labels), "class names that are different numbers", "rename one of them")
