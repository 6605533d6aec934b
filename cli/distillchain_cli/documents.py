"""A chain from a file or stdin, with what the command line says over it. All faults are reported together.

Relative URIs (`file://./data`, `file://../models`) are read from the folder of the file, those of the command line from
the current one; what comes out holds absolute URIs only.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distillchain_api.faults import BadDocument, Fault, expected
from distillchain_api.resource.spec import DistillationChain, parse_chain
from distillchain_api.yaml_text import load_yaml

STDIN = "-"
RELATIVE_URI = re.compile(r"file://(\.{1,2}(?:/.*)?)")
SEGMENT = re.compile(r"\.?([A-Za-z_][A-Za-z0-9_-]*)|\[([^\[\]]+)\]")
SETTABLE = re.compile(r"spec[.\[]|metadata\.(name|namespace)$")


def read_chain(file: str, *, overrides: Sequence[str] = (), storage: str | None = None) -> DistillationChain:
    """The chain in `file` (`-`: stdin).

    Args:
        overrides: `path=value`, the value in YAML; later ones win.
        storage: replaces spec.storage whole: another store has another endpoint and other credentials.
    Raises: BadDocument with every fault of file and overrides.
    """
    source = "stdin" if file == STDIN else file
    here = Path.cwd()
    folder = here if file == STDIN else (here / file).parent
    document = load_yaml(_read(file, source), source=source)
    document["spec"] = resolve_uris(document.get("spec"), folder)
    faults: list[Fault] = []
    for override in overrides:
        try:
            _apply(document, override, here)
        except _BadOverride as error:
            faults.append(Fault(f"--set {override}", str(error)))
    if storage is not None and isinstance(document["spec"], dict):
        document["spec"]["storage"] = {"uri": resolve_uris(storage, here)}
    if document["spec"] is None:
        del document["spec"]
    try:
        chain = parse_chain(document, source=source)
    except BadDocument as error:
        raise BadDocument(source, [*faults, *error.faults]) from error
    if faults:
        raise BadDocument(source, faults)
    return chain


def _read(file: str, source: str) -> str:
    try:
        content = sys.stdin.buffer.read() if file == STDIN else Path(file).read_bytes()
        return content.decode("utf-8-sig")
    except FileNotFoundError as error:
        raise BadDocument(source, [Fault("", "there is no such file; expected a chain, or - for stdin")]) from error
    except UnicodeDecodeError as error:
        raise BadDocument(
            source, [Fault("", f"byte {error.start + 1} is not UTF-8; save the file as UTF-8")]
        ) from error
    except OSError as error:
        raise BadDocument(source, [Fault("", f"cannot be read: {error.strerror}")]) from error


def resolve_uris(value: Any, folder: Path) -> Any:
    """`value` with every relative file:// URI in it made absolute from `folder`."""
    if isinstance(value, dict):
        return {key: resolve_uris(item, folder) for key, item in value.items()}
    if isinstance(value, list):
        return [resolve_uris(item, folder) for item in value]
    if isinstance(value, str) and (relative := RELATIVE_URI.fullmatch(value)):
        return "file://" + os.path.normpath(folder / relative[1])
    return value


class _BadOverride(ValueError):
    """Why one --set cannot be applied."""


def _apply(document: dict[str, Any], override: str, folder: Path) -> None:
    """Writes one `path=value` into the document; whether the field exists is the model's to say."""
    path, equals, text = override.partition("=")
    if not equals:
        raise _BadOverride("has no '='; expected path=value, such as spec.template.training.epochs=1")
    if not SETTABLE.match(path):
        raise _BadOverride("expected a path under spec, or metadata.name, such as spec.template.training.epochs=1")
    *parents, last = _segments(path)
    holder: Any = document
    walked = ""
    for segment in parents:
        holder = _enter(holder, segment, walked)
        walked = f"{walked}.{segment}" if walked else segment
    value = resolve_uris(_value(text), folder)
    if isinstance(holder, list):
        holder[_index(holder, last, walked)] = value
    else:
        holder[last] = value


def _segments(path: str) -> list[str]:
    """`spec.stages[tiny].gate` as its parts. Raises: _BadOverride."""
    parts, position = [], 0
    while position < len(path):
        found = SEGMENT.match(path, position)
        if found is None:
            raise _BadOverride(f"cannot be read from {path[position:]!r} on; expected names with '.' and '[...]'")
        parts.append(found[1] or found[2])
        position = found.end()
    return parts


def _enter(holder: Any, segment: str, walked: str) -> Any:
    """The mapping or list below `segment`; a missing one is made."""
    if isinstance(holder, list):
        inner = holder[_index(holder, segment, walked)]
    else:
        if holder.get(segment) is None:
            holder[segment] = {}
        inner = holder[segment]
    if not isinstance(inner, dict | list):
        raise _BadOverride(f"{walked}.{segment} is {inner!r}; expected a mapping or a list there")
    return inner


def _index(items: list[Any], segment: str, walked: str) -> int:
    """The place in a list by number, or by the `name` of the item there."""
    if segment.isdecimal() and int(segment) < len(items):
        return int(segment)
    names = [item.get("name") for item in items if isinstance(item, dict)]
    by_name = [index for index, item in enumerate(items) if isinstance(item, dict) and item.get("name") == segment]
    if not by_name:
        known = f" or one of {', '.join(map(str, names))}" if any(names) else ""
        last = f"a number from 0 to {len(items) - 1}" if items else "nothing, the list is empty"
        raise _BadOverride(f"{walked}: " + expected(segment, f"{last}{known}"))
    return by_name[0]


def _value(text: str) -> Any:
    """A value in YAML, read as kubectl reads the file. Raises: _BadOverride."""
    try:
        document = load_yaml(f"value: {text}", source="")
    except BadDocument as error:
        why = str(error).rpartition(": ")[2]
        raise _BadOverride(f"the value is not YAML ({why}); quote it") from error
    if set(document) != {"value"}:
        raise _BadOverride("expected one value; quote it")
    return document["value"]
