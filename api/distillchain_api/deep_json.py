"""JSON whose nesting is limited. The API server stores objects of 10,000 levels; Python's json gives up at about 1,000.

Whoever lists the objects of several users reads them with `loads`, so that one object cannot hide all others.
"""

from __future__ import annotations

import contextlib
import json
import re
from typing import Any

from pydantic_core import from_json

from distillchain_api.faults import Fault, path_of

MAX_DEPTH = 100  # a chain with a whole pod has 20 levels; copy.deepcopy and pydantic recurse and fail from 300 on
TOO_DEEP = f"(nested more than {MAX_DEPTH} levels deep)"
"""The text in place of a list or mapping that is nested more deeply."""
SHOWN_LEVELS = 4  # of the path in a fault: spec.template.pod.spec

_STRING = r'"[^"\\]*(?:\\.[^"\\]*)*"'
_STRING_OR_BRACKET = re.compile(rf"{_STRING}|[\[\]{{}}]")


def loads(text: str) -> Any:
    """The value of JSON text, with TOO_DEEP in place of what is nested too deeply.

    If the whole text has at most 200 levels, nothing is replaced: `depth_fault` finds what is deeper than MAX_DEPTH.
    Raises: ValueError if the text is not JSON.
    """
    # Lists of chains have megabytes. This parser has its own limit of 200 levels and takes a quarter of the time that a
    # search for deep nesting and json.loads take.
    with contextlib.suppress(ValueError):
        return from_json(text)
    return json.loads(_cut(text))


def _cut(text: str) -> str:
    kept, depth, start, copied = [], 0, 0, 0
    for found in _STRING_OR_BRACKET.finditer(text):
        if found[0] in "{[":
            depth += 1
            if depth == MAX_DEPTH + 1:
                start = found.start()
        elif found[0] in "}]":
            if depth == MAX_DEPTH + 1:
                kept += [text[copied:start], json.dumps(TOO_DEEP)]
                copied = found.end()
            depth -= 1
    return "".join([*kept, text[copied:]])


def depth_fault(document: Any) -> Fault | None:
    """Where a decoded document is nested too deeply; None if it is not."""
    # A stack of its own instead of recursion, which is what such a document breaks.
    waiting: list[tuple[tuple[int | str, ...], int, Any]] = [((), 0, document)]
    while waiting:
        path, depth, value = waiting.pop()
        if depth > MAX_DEPTH or value == TOO_DEEP:
            return Fault(
                path_of(path), f"nested more than {MAX_DEPTH} levels deep, expected at most that; remove the inner ones"
            )
        children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        # The whole path of a deep value would be longer than the message.
        waiting += [((*path, key) if depth < SHOWN_LEVELS else path, depth + 1, child) for key, child in children]
    return None
