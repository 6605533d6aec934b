"""What is wrong with a document, one sentence a fault: field, value, expectation, remedy.

Does not know what the documents mean; pydantic_errors.py turns the errors of a parse into faults.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic_core import PydanticCustomError


@dataclass(frozen=True)
class Expect:
    """Annotation of a field: what belongs there, and how to correct a wrong value."""

    expectation: str
    remedy: str = ""


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong, readable on its own."""

    field: str
    problem: str

    def __str__(self) -> str:
        return f"{self.field}: {self.problem}" if self.field else self.problem


class BadDocument(ValueError):
    """A document that cannot be used; `faults` holds everything that is wrong with it, not only the first fault."""

    def __init__(self, source: str, faults: Sequence[Fault]) -> None:
        self.source = source
        self.faults = tuple(faults)
        super().__init__("\n".join(str(fault) for fault in self.faults))


def error_of(faults: Sequence[Fault]) -> PydanticCustomError:
    """The error of a validator that found several faults; their fields are relative to what it validates."""
    # pydantic reports one error per validator, so the faults travel as its context (pydantic_errors.py).
    return PydanticCustomError("faults", "{count} faults", {"count": len(faults), "faults": list(faults)})


SHOWN_VALUE_CHARS = 80  # a pasted certificate or a whole pod would hide the rest of the message


def got(value: Any) -> str:
    """`got 5`: a value as it is written in JSON, truncated to a readable size."""
    # As JSON and not by repr: readers know `true` and `"5"` from their file, not `True` and `'5'`.
    text = json.dumps(value, default=str, ensure_ascii=False)
    return f"got {text if len(text) <= SHOWN_VALUE_CHARS else text[:SHOWN_VALUE_CHARS] + '...'}"


def expected(value: Any, expectation: str, remedy: str = "") -> str:
    """`got 5, expected a share from 0 to 1; for five points write 0.05`."""
    return f"{got(value)}, expected {expectation}" + (f"; {remedy}" if remedy else "")


_TRUE, _FALSE = ("y", "yes", "on"), ("n", "no", "off")


def written_as(value: Any) -> tuple[str, ...]:
    """The texts that quotation marks make of what a file has where this value was read; none if they do not help."""
    if isinstance(value, bool):
        # Nothing tells which was written: the API server gets true for all of these from kubectl.
        return _TRUE if value else _FALSE
    return (str(value),) if isinstance(value, int | float) else ()


def quote(value: Any) -> str:
    """The remedy where text belongs and a file has this value; empty if quotation marks do not help."""
    if isinstance(value, bool):
        first, second, last = written_as(value)
        words = f"{first}, {second} and {last}"
        return f"in YAML, quote it: without quotation marks, YAML 1.1 and kubectl read {words} as {json.dumps(value)}"
    return "in YAML, quote it" if written_as(value) else ""


def nearest(name: str, known: Sequence[str]) -> str:
    """The remedy for a misspelt name: the nearest known one, else all of them."""
    match = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"did you mean {match[0]}?" if match else f"expected one of {', '.join(sorted(known))}"


def listed(names: Sequence[str], *, most: int) -> str:
    """Names separated by commas, `most` of them at most. A name that contains a comma is in quotation marks."""
    shown = [json.dumps(name, ensure_ascii=False) if "," in name else name for name in names[:most]]
    return ", ".join([*shown, "..."] if len(names) > most else shown)


def path_of(loc: Sequence[int | str]) -> str:
    """`spec.stages[2].gate`: a location the way kubectl prints it."""
    path = ""
    for part in loc:
        path = join_path(path, f"[{part}]" if isinstance(part, int) else str(part))
    return path


def join_path(parent: str, field: str) -> str:
    """`spec.pod` and `containers[0]` as one path; either may be empty."""
    # `spec.stages` and `[2]` are one path without a dot.
    dot = "." if parent and field and not field.startswith("[") else ""
    return f"{parent}{dot}{field}"
