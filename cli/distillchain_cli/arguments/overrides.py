"""Applies `--set PATH=VALUE` and `--storage URI` to a chain document, and names the option in faults that it caused.

URIs in options are relative to the current folder. Whether a field exists is checked later, with the whole document.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distillchain_api.faults import BadDocument, Fault, expected
from distillchain_api.resource.storage import Storage
from distillchain_api.yaml_text import load_yaml
from distillchain_cli.arguments.relative_uris import resolve_uris, with_uri_hint

SEGMENT = re.compile(r"\.?([A-Za-z_][A-Za-z0-9_-]*)|\[([^\[\]]+)\]")
SETTABLE = re.compile(r"spec[.\[]|metadata\.(name|namespace)$")
EXAMPLE = "spec.template.training.epochs=1"


@dataclass(frozen=True)
class AppliedOption:
    """An option that has changed the document.

    Attributes:
        text: as the user typed it.
        path: the field it replaced, with list positions as numbers.
    """

    text: str
    path: str


class _BadOverride(ValueError):
    """Why a --set cannot be applied."""


def apply_overrides(
    document: dict[str, Any], overrides: Sequence[str], folder: Path
) -> tuple[list[AppliedOption], list[Fault]]:
    """Changes `document` by each `path=value` in turn. Returns: the applied ones, and why others were not applied."""
    applied: list[AppliedOption] = []
    faults: list[Fault] = []
    for override in overrides:
        try:
            applied.append(AppliedOption(f"--set {override}", _apply(document, override, folder)))
        except _BadOverride as error:
            faults.append(Fault(f"--set {override}", str(error)))
    return applied, faults


def apply_storage(document: dict[str, Any], uri: str, folder: Path) -> AppliedOption:
    """Replaces all of spec.storage: another store has another endpoint and other credentials."""
    if isinstance(document.get("spec"), dict):
        document["spec"]["storage"] = {"uri": resolve_uris(uri, folder)}
    return AppliedOption("--storage", "spec.storage.uri")


def parse_storage(uri: str, folder: Path) -> Storage:
    """The storage that --storage names. Raises: BadDocument."""
    try:
        return Storage.parse({"uri": resolve_uris(uri, folder)})
    except BadDocument as error:
        option = AppliedOption("--storage", "uri")
        raise BadDocument("", [attribute(fault, [option]) for fault in error.faults]) from error


def attribute(fault: Fault, applied: Sequence[AppliedOption]) -> Fault:
    """The fault with the option that caused it as its field; with its own field if the value stands in the file."""
    for option in reversed(applied):  # the last one wins
        hinted = with_uri_hint(fault, base="the current folder")
        if fault.field == option.path:
            return Fault(option.text, hinted.problem)
        if fault.field.startswith((f"{option.path}.", f"{option.path}[")):
            return Fault(option.text, str(hinted))
    return with_uri_hint(fault, base="the folder of this file")


def _apply(document: dict[str, Any], override: str, folder: Path) -> str:
    """Writes one `path=value` into the document. Returns: the path, with list positions as numbers."""
    path, equals, text = override.partition("=")
    if not equals:
        raise _BadOverride(f"has no '='; expected path=value, such as {EXAMPLE}")
    if not SETTABLE.match(path):
        raise _BadOverride(f"expected a path under spec, or metadata.name, such as {EXAMPLE}")
    # Path and value are both read before the document is changed: a bad value must not leave empty mappings behind.
    *parents, last = _segments(path)
    value = resolve_uris(_value(text), folder)
    holder: Any = document
    walked = ""
    for segment in parents:
        holder, walked = _enter(holder, segment, walked)
    if isinstance(holder, list):
        index = _index(holder, last, walked)
        holder[index] = value
        return f"{walked}[{index}]"
    holder[last] = value
    return f"{walked}.{last}"


def _segments(path: str) -> list[str]:
    """`spec.stages[tiny].gate` as its parts. Raises: _BadOverride."""
    parts, position = [], 0
    while position < len(path):
        found = SEGMENT.match(path, position)
        if found is None:
            raise _BadOverride(f"cannot read the path from {path[position:]!r} on; expected names with '.' and '[...]'")
        parts.append(found[1] or found[2])
        position = found.end()
    return parts


def _enter(holder: Any, segment: str, walked: str) -> tuple[Any, str]:
    """The mapping or list below `segment`, which is created if it is missing, and its path."""
    if isinstance(holder, list):
        index = _index(holder, segment, walked)
        inner, path = holder[index], f"{walked}[{index}]"
    else:
        # Missing, or an empty `training:` in the file, which YAML reads as null.
        if holder.get(segment) is None:
            holder[segment] = {}
        inner, path = holder[segment], f"{walked}.{segment}" if walked else segment
    if not isinstance(inner, dict | list):
        raise _BadOverride(f"{path} is {inner!r}; expected a mapping or a list there")
    return inner, path


def _index(items: list[Any], segment: str, walked: str) -> int:
    """The position in a list, by number or by the `name` of the item."""
    # A number wins over a name: stages cannot have numbers as names, because names start with a letter.
    if segment.isdecimal() and int(segment) < len(items):
        return int(segment)
    names = [item.get("name") for item in items if isinstance(item, dict)]
    by_name = [index for index, item in enumerate(items) if isinstance(item, dict) and item.get("name") == segment]
    if not by_name:
        known = f" or one of {', '.join(map(str, names))}" if any(names) else ""
        numbers = f"a number from 0 to {len(items) - 1}" if len(items) > 1 else "0"
        last = numbers if items else "nothing, because the list is empty"
        raise _BadOverride(f"{walked}: " + expected(segment, f"{last}{known}"))
    return by_name[0]


def _value(text: str) -> Any:
    """The value, read as kubectl reads YAML. Raises: _BadOverride."""
    try:
        # Inside a mapping, so that `a: b` is refused as in a file, where it would need quotes too.
        document = load_yaml(f"value: {text}", source="")
    except BadDocument as error:
        problem = error.faults[0].problem
        # A value that can be read but not used, such as .inf, would be refused in quotation marks too.
        remedy = "" if problem.startswith("got ") else "; quote it"
        raise _BadOverride(f"the value is not YAML ({problem}){remedy}") from error
    # A line break in the value may have started a second key.
    if set(document) != {"value"}:
        raise _BadOverride("expected one value; quote it")
    return document["value"]
