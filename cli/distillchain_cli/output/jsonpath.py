"""kubectl's JSONPath templates: `{.metadata.name}`, `{range .items[*]}{.spec.teacher.model}{"\\n"}{end}`.

As in kubectl, a path that leads nowhere gives no text, and several results of an expression are joined by spaces. An
index beyond the end of a list gives no text either, where kubectl fails.
"""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

QUOTES = ("'", '"')
EXPRESSION = re.compile(r'\{((?:"(?:\\.|[^"\\])*"|\'(?:\\.|[^\'\\])*\'|[^{}"\'])*)\}')
STEP = re.compile(
    r"""(?P<deep>\.\.)?\.?(?P<name>(?:\\.|[\w$@/-])+)   # .name, with dots and slashes as \. and /
      | (?P<any>(?:\.\.|\.)\*)                          # .*
      | \[(?P<index>\s*(?:\*|-?\d*:-?\d*(?::\d*)?|-?\d+(?:\s*,\s*-?\d+)*)\s*)\]
      | \[(?P<quoted>\s*(?:'[^']*'|"[^"]*")(?:\s*,\s*(?:'[^']*'|"[^"]*"))*\s*)\]
      | \[\?\((?P<filter>[^()]*)\)\]""",
    re.VERBOSE,
)
COMPARISON = re.compile(r"\s*@(?P<left>\S*?)\s*(?:(?P<sign>==|!=|<=|>=|<|>)\s*(?P<right>.+?))?\s*")
SIGNS: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
Step = Callable[[Any], Iterable[Any]]
"""From one value to the values that a step of a path selects in it."""


class BadTemplate(ValueError):
    """Why a template cannot be read."""


@dataclass(frozen=True)
class Template:
    """A template that can be applied to a document."""

    parts: tuple[_Part, ...]

    def render(self, document: Any) -> str:
        """The text for a document."""
        return "".join(part.render(document) for part in self.parts)


@dataclass(frozen=True)
class _Text:
    text: str

    def render(self, _: Any) -> str:
        return self.text


@dataclass(frozen=True)
class _Path:
    steps: tuple[Step, ...]

    def select(self, value: Any) -> list[Any]:
        found = [value]
        for step in self.steps:
            found = [result for each in found for result in step(each)]
        return found

    def render(self, value: Any) -> str:
        return " ".join(map(_text, self.select(value)))


@dataclass(frozen=True)
class _Range:
    path: _Path
    body: Template

    def render(self, value: Any) -> str:
        return "".join(self.body.render(each) for each in self.path.select(value))


_Part = _Text | _Path | _Range


def parse_template(text: str) -> Template:
    """The template of `-o jsonpath=TEXT`. Raises: BadTemplate."""
    template = _build(_split(text), is_in_range=False)
    # kubectl prints such a text as it stands, which is never what is meant.
    if all(isinstance(part, _Text) for part in template.parts):
        raise BadTemplate("expected a path in braces, such as {.metadata.name}")
    return template


def _split(text: str) -> Iterator[tuple[bool, str]]:
    """The texts outside braces (False) and the expressions in them (True)."""
    position = 0
    for found in EXPRESSION.finditer(text):
        yield False, _without_braces(text[position : found.start()])
        yield True, found[1].strip()
        position = found.end()
    yield False, _without_braces(text[position:])


def _without_braces(text: str) -> str:
    if "{" in text or "}" in text:
        raise BadTemplate(f"expected balanced braces and quotes in {text!r}")
    return text


def _build(pieces: Iterator[tuple[bool, str]], *, is_in_range: bool) -> Template:
    """The template up to `{end}` or to the end; it takes its pieces from the iterator."""
    parts: list[_Part] = []
    for is_expression, piece in pieces:
        if not is_expression:
            parts.append(_Text(piece))
        elif piece == "end":
            if not is_in_range:
                raise BadTemplate("got {end} without {range}")
            return Template(tuple(parts))
        elif piece.startswith("range "):
            path = _path(piece.removeprefix("range ").strip())
            parts.append(_Range(path, _build(pieces, is_in_range=True)))
        else:
            parts.append(_Text(_unquoted(piece)) if piece[:1] in QUOTES else _path(piece))
    if is_in_range:
        raise BadTemplate("expected {end} after {range}")
    return Template(tuple(parts))


def _unquoted(text: str) -> str:
    try:
        return str(json.loads('"' + text[1:-1].replace("\\'", "'") + '"' if text[0] == "'" else text))
    except ValueError as error:
        raise BadTemplate(f"cannot read the text {text}") from error


def _path(text: str) -> _Path:
    rest = text[1:] if text[:1] in ("$", "@") else text
    steps, position = [], 0
    while position < len(rest):
        found = STEP.match(rest, position)
        if found is None or found.end() == position:
            raise BadTemplate(f"cannot read {rest[position:]!r} in the path {{{text}}}")
        steps.extend(_steps(found))
        position = found.end()
    return _Path(tuple(steps))


def _steps(found: re.Match[str]) -> list[Step]:
    """The steps of one part of a path."""
    if name := found["name"]:
        fields = _fields([re.sub(r"\\(.)", r"\1", name)])
        return [_descendants, fields] if found["deep"] else [fields]
    if found["any"]:
        return [_descendants] if found["any"].startswith("..") else [_values]
    if found["quoted"]:
        return [_fields([text.strip()[1:-1] for text in re.findall(r"'[^']*'|\"[^\"]*\"", found["quoted"])])]
    if found["filter"] is not None:
        return [_filter(found["filter"])]
    return [_items(found["index"].strip())]


def _fields(names: list[str]) -> Step:
    return lambda value: [value[name] for name in names if name in value] if isinstance(value, dict) else []


def _values(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def _descendants(value: Any) -> Iterator[Any]:
    yield value
    for inner in _values(value):
        yield from _descendants(inner)


def _items(index: str) -> Step:
    if index == "*":
        return _values
    if ":" in index:
        bounds = slice(*(int(bound) if bound else None for bound in index.split(":")))
        return lambda value: value[bounds] if isinstance(value, list) else []
    numbers = [int(number) for number in index.split(",")]

    def pick(value: Any) -> list[Any]:
        count = len(value) if isinstance(value, list) else 0
        return [value[number] for number in numbers if -count <= number < count]

    return pick


def _filter(text: str) -> Step:
    """The items of a list for which `@.path`, or a comparison with it, holds."""
    found = COMPARISON.fullmatch(text)
    if found is None:
        raise BadTemplate(f'cannot read the filter ({text}); expected a form such as ?(@.phase=="Failed")')
    path = _path(found["left"])
    if found["sign"] is None:
        return lambda value: [item for item in _values(value) if path.select(item)]
    compare, wanted = SIGNS[found["sign"]], _constant(found["right"])

    def holds(item: Any) -> bool:
        left = path.select(item)
        is_comparable = len(left) == 1 and _kind(left[0]) is _kind(wanted)
        return is_comparable and compare(left[0], wanted)

    return lambda value: [item for item in _values(value) if holds(item)]


def _constant(text: str) -> Any:
    if text[0] in QUOTES:
        return _unquoted(text)
    try:
        return json.loads(text)
    except ValueError as error:
        raise BadTemplate(f"cannot read the value {text} in a filter; quote it") from error


def _kind(value: Any) -> type:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float if is_number else type(value)


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
