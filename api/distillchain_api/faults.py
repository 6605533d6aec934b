"""What is wrong with a document, one sentence a fault: field, value, expectation, remedy.

Turns pydantic's errors into sentences. Refuses to know what the documents mean.
"""

from __future__ import annotations

import difflib
import json
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails


@dataclass(frozen=True)
class Expect:
    """Annotation of a field: what belongs there, and what a person does who got it wrong."""

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
    """A document that cannot be used; `faults` holds all that is wrong with it, never only the first."""

    def __init__(self, source: str, faults: Sequence[Fault]) -> None:
        self.source = source
        self.faults = tuple(faults)
        super().__init__("\n".join(str(fault) for fault in self.faults))


SHOWN_VALUE_CHARS = 80  # a pasted certificate or a whole pod in a message helps nobody


def got(value: Any) -> str:
    """`got 5`: a value as a person would have written it, cut to a readable size."""
    text = json.dumps(value, default=str, ensure_ascii=False)
    return f"got {text if len(text) <= SHOWN_VALUE_CHARS else text[:SHOWN_VALUE_CHARS] + '...'}"


def expected(value: Any, expectation: str, remedy: str = "") -> str:
    """`got 5, expected a share from 0 to 1; for five points write 0.05`."""
    return f"{got(value)}, expected {expectation}" + (f"; {remedy}" if remedy else "")


def nearest(name: str, known: Sequence[str]) -> str:
    """The remedy for a misspelt name: the nearest known one, else all of them."""
    match = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"did you mean {match[0]}?" if match else f"expected one of {', '.join(sorted(known))}"


def faults_of(error: ValidationError, model: type[BaseModel]) -> list[Fault]:
    """All faults of one document, in the order of its fields."""
    return [_fault(details, model) for details in error.errors(include_url=False)]


def _fault(details: ErrorDetails, model: type[BaseModel]) -> Fault:
    loc = [part for part in details["loc"] if not _is_union_tag(part)]
    kind, value = details["type"], details["input"]
    expect = _expectation(model, loc)
    field = path_of(loc)
    if kind == "extra_forbidden":
        owner = _owner(model, loc[:-1])
        return Fault(field, f"unknown field; {nearest(str(loc[-1]), list(_names(owner)) if owner else [])}")
    if kind == "missing":
        what = f", expected {expect.expectation}" if expect else ""
        return Fault(field, f"missing{what}; add it")
    if kind == "fault":  # raised by our own validators with the sentence ready
        context = details.get("ctx", {})
        return Fault(".".join(filter(None, (field, context.get("field", "")))), context["problem"])
    if kind == "json_invalid":
        return Fault(field, f"not JSON: {details['msg']}")
    if expect:
        return Fault(field, expected(value, expect.expectation, expect.remedy))
    return Fault(field, expected(value, _plain(details)))


def _plain(details: ErrorDetails) -> str:
    """Pydantic's own wording as an expectation, for fields that need no special one."""
    words = details["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    if details["type"] == "string_type":
        return "text (in YAML, quote it)"
    return words[0].lower() + words[1:] if words else "another value"


def _is_union_tag(part: int | str) -> bool:
    """Pydantic puts validator names such as `function-after[...]` into loc; people never wrote them."""
    return isinstance(part, str) and ("[" in part or part in {"tagged-union", "constrained-str", "nullable"})


def path_of(loc: Sequence[int | str]) -> str:
    """`spec.stages[2].gate`: a location the way kubectl prints it."""
    path = ""
    for part in loc:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
    return path


def _names(model: type[BaseModel]) -> Iterator[str]:
    for name, info in model.model_fields.items():
        yield info.alias or name


def _walk(model: type[BaseModel], loc: Sequence[int | str]) -> tuple[Any, list[Any]] | None:
    """The annotation and metadata of the field at `loc`."""
    annotation: Any = model
    metadata: list[Any] = []
    for part in loc:
        annotation, metadata = _strip(annotation, metadata)
        if isinstance(part, int) or typing.get_origin(annotation) in (dict, Mapping):
            args = typing.get_args(annotation)
            if not args:
                return None
            annotation, metadata = (args[0] if isinstance(part, int) else args[-1]), []
        elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
            info = next((i for n, i in annotation.model_fields.items() if part in (n, i.alias)), None)
            if info is None:
                return None
            annotation, metadata = info.annotation, list(info.metadata)
        else:
            return None
    return _strip(annotation, metadata)


def _strip(annotation: Any, metadata: list[Any]) -> tuple[Any, list[Any]]:
    """Unwraps Annotated, NewType and Optional down to what a document author would call the type."""
    while True:
        if hasattr(annotation, "__supertype__"):
            annotation = annotation.__supertype__
        elif hasattr(annotation, "__metadata__"):
            annotation, metadata = annotation.__origin__, [*metadata, *annotation.__metadata__]
        elif type(None) in typing.get_args(annotation):
            options = [a for a in typing.get_args(annotation) if a is not type(None)]
            if len(options) != 1:
                return annotation, metadata
            annotation = options[0]
        else:
            return annotation, metadata


def _owner(model: type[BaseModel], loc: Sequence[int | str]) -> type[BaseModel] | None:
    found = _walk(model, loc) if loc else (model, [])
    annotation = found[0] if found else None
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _expectation(model: type[BaseModel], loc: Sequence[int | str]) -> Expect | None:
    found = _walk(model, loc)
    if not found:
        return None
    for item in found[1]:
        if isinstance(item, Expect):
            return item
        nested = getattr(item, "metadata", None)  # FieldInfo kept inside Annotated
        if nested:
            expect = next((m for m in nested if isinstance(m, Expect)), None)
            if expect:
                return expect
    return None
