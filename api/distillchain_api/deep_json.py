"""JSON whose nesting is limited. The API server stores objects of 10,000 levels; Python's json gives up at about 1,000.

Whoever lists the objects of several users reads them with `loads`, so that one object cannot hide all others.
"""

from __future__ import annotations

import json
import re
from typing import Any

from distillchain_api.faults import Fault, path_of

MAX_DEPTH = 100  # a chain with a whole pod has 20 levels; copy.deepcopy and pydantic recurse and fail from 300 on
TOO_DEEP = f"(nested more than {MAX_DEPTH} levels deep)"
"""The text in place of a list or mapping that is nested more deeply."""
SHOWN_LEVELS = 4  # of the path in a fault: spec.template.pod.spec

_STRING = r'"[^"\\]*(?:\\.[^"\\]*)*"'
_NO_BRACKET = re.compile(rf'{_STRING}|[^\[\]{{}}"]+')
_STRING_OR_BRACKET = re.compile(rf"{_STRING}|[\[\]{{}}]")


def loads(text: str) -> Any:
    """The value of JSON text, with TOO_DEEP in place of what is nested too deeply.

    Raises: ValueError if the text is not JSON.
    """
    return json.loads(_cut(text) if _may_be_deep(text) else text)


def _may_be_deep(text: str) -> bool:
    """Whether the nesting exceeds MAX_DEPTH; also true for unbalanced brackets."""
    if text.count("}") + text.count("]") <= MAX_DEPTH:
        return False
    brackets = _NO_BRACKET.sub("", text)
    # Each round removes at least the innermost level. A few rounds over ever shorter text are much faster than a loop
    # over all characters, and lists of chains have megabytes.
    for _ in range(MAX_DEPTH):
        if not brackets:
            return False
        brackets = brackets.replace("{}", "").replace("[]", "")
    return bool(brackets)


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
