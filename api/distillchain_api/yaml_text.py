"""YAML and JSON text as kubectl reads it, in plain data.

Scalars follow yaml_scalars.py. Where kubectl would lose or guess something, the text is refused with line and column: a
key that appears twice, a key that is not text, a tag other than !!str.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import yaml

from distillchain_api.faults import BadDocument, Fault, got
from distillchain_api.yaml_scalars import NotFinite, json_number, read_scalar

PLAIN = ""
"""Tag of an unquoted scalar without a tag of its own. No file can spell it."""
MERGE = "<<"
STARTS_LIKE_JSON = re.compile(r'\s*\{\s*("|$)')
STANDARD_TAG = "tag:yaml.org,2002:"
MAX_VALUES = 1_000_000  # far above any real file; a few lines of nested aliases can expand to billions


class _Loader(yaml.SafeLoader):
    """Builds nodes only. Which scalar means what is decided in `_Reader`, not by PyYAML."""

    def compose_scalar_node(self, anchor: Any) -> yaml.ScalarNode:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]  # types-PyYAML leaves it unannotated
        if event.tag == "!":  # `! 5` is text; `resolve` is not told about the tag
            event.tag = f"{STANDARD_TAG}str"
        return super().compose_scalar_node(anchor)

    def resolve(self, kind: type[yaml.Node], _value: Any, implicit: Any) -> str:
        # implicit[0]: the scalar is plain, so its text decides its type; a quoted one is always text.
        if kind is yaml.ScalarNode and implicit[0]:
            return PLAIN
        kinds = {yaml.ScalarNode: "str", yaml.SequenceNode: "seq", yaml.MappingNode: "map"}
        return STANDARD_TAG + kinds[kind]


def load_yaml(text: str, *, source: str) -> dict[str, Any]:
    """The one mapping in `text`.

    Raises: BadDocument when it is not YAML, not one document or not a mapping.
    """
    documents = load_documents(text, source=source)
    if len(documents) != 1:
        raise BadDocument(source, [Fault("", f"got {len(documents)} documents, expected one")])
    return documents[0]


def load_documents(text: str, *, source: str) -> list[dict[str, Any]]:
    """Every document of a YAML stream or of concatenated JSON; empty documents are left out.

    Raises: BadDocument with line and column when the text cannot be read.
    """
    try:
        return _load(text)
    except _Unreadable as error:
        raise BadDocument(source, [error.fault]) from error


def _load(text: str) -> list[dict[str, Any]]:
    # A chain is a mapping, so other JSON can be left to the YAML parser, which explains what is wrong.
    if not text.lstrip().startswith("{"):
        return _load_yaml(text)
    try:
        documents = _load_json(text)
    except json.JSONDecodeError as not_json:  # it may still be YAML in braces
        try:
            return _load_yaml(text)
        except _Unreadable as not_yaml:
            raise (_explain_json(not_json) if STARTS_LIKE_JSON.match(text) else not_yaml) from not_json
    except RecursionError:
        return _load_yaml(text)
    # Otherwise the YAML parser says where the text is no mapping.
    return documents if all(isinstance(document, dict) for document in documents) else _load_yaml(text)


class _Unreadable(Exception):
    """Where the text cannot be read, and why."""

    def __init__(self, mark: yaml.Mark | None, problem: str) -> None:
        where = f"line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        self.fault = Fault(where, problem)


def _load_json(text: str) -> list[dict[str, Any]]:
    """Documents of JSON text. Raises: JSONDecodeError when it is not JSON, else _Unreadable.

    JSON is almost YAML, but a YAML parser refuses its tabs and splits its surrogate pairs.
    """
    decoder = json.JSONDecoder(
        object_pairs_hook=_json_mapping, parse_float=_json_float, parse_int=_json_integer, parse_constant=_json_float
    )
    documents = []
    position, end = len(text) - len(text.lstrip()), len(text.rstrip())
    try:
        while position < end:
            document, position = decoder.raw_decode(text, position)
            documents.append(document)
            position += len(text[position:]) - len(text[position:].lstrip())
    except NotFinite as error:
        raise _Unreadable(None, _not_finite(str(error))) from error
    return documents


def _explain_json(error: json.JSONDecodeError) -> _Unreadable:
    """The JSON parser's error in plain English, with the line where a user has to look."""
    # At the end, the parser names what it expected next, but more than that is missing.
    if error.pos >= len(error.doc.rstrip()):
        mark = _mark_at(error.doc, len(error.doc.rstrip()))
        return _Unreadable(mark, "the JSON ends before every bracket is closed; the file is cut off, or lacks brackets")
    if error.msg.startswith("Unterminated string"):
        problem = "the text that starts here is not closed; the file is cut off, or lacks a quotation mark"
        return _Unreadable(_mark_at(error.doc, error.pos), problem)
    expected_next = {
        "Expecting ',' delimiter": "',' or the closing bracket",
        "Expecting ':' delimiter": "':' after the name",
        "Expecting value": "a value",
        "Expecting property name enclosed in double quotes": "a name in double quotes",
    }
    problem = f"expected {expected_next[error.msg]}" if error.msg in expected_next else error.msg.removesuffix(" at")
    if error.msg == "Expecting value" and error.doc[: error.pos].rstrip().endswith("}"):
        problem = "unexpected text after the closing bracket"
    return _Unreadable(_mark_at(error.doc, error.pos), f"not JSON: {problem}")


def _json_float(digits: str) -> int | float:
    return json_number(float(digits))


def _json_integer(digits: str) -> int | float:
    return json_number(int(digits) if len(digits) < 20 else float(digits))  # int() refuses texts of 4,300 digits


def _json_mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping: dict[str, Any] = {}
    for key, value in pairs:
        if key in mapping:
            raise _Unreadable(None, _twice(key))
        mapping[key] = value
    return mapping


def _load_yaml(text: str) -> list[dict[str, Any]]:
    documents = []
    try:
        for node in yaml.compose_all(text, Loader=_Loader):
            value = _Reader().read(node)
            # An empty document, or one with comments only; kubectl skips it too.
            if value is None:
                continue
            if not isinstance(value, dict):
                raise _Unreadable(node.start_mark, "expected a mapping with apiVersion, kind, metadata and spec")
            documents.append(value)
    except yaml.reader.ReaderError as error:
        raise _Unreadable(_mark_at(text, error.position), f"character {error.character:#x} is not allowed") from error
    except yaml.MarkedYAMLError as error:
        raise _explain(error, text) from error
    # A few KB of opening brackets are enough for it.
    except RecursionError as error:
        raise _Unreadable(None, "is nested too deeply") from error
    return documents


class _Reader:
    """Turns the nodes of one document into plain data."""

    def __init__(self) -> None:
        self._open: set[int] = set()
        self._count = 0

    def read(self, node: yaml.Node) -> Any:
        """The value of a node. Raises: _Unreadable, NotFinite."""
        self._count += 1
        if self._count > MAX_VALUES:
            raise _Unreadable(node.start_mark, f"the aliases expand to more than {MAX_VALUES} values")
        if isinstance(node, yaml.ScalarNode):
            return _scalar(node)
        # An alias is the node itself, so a loop meets a node that is still being read.
        if id(node) in self._open:
            raise _Unreadable(node.start_mark, "the value contains itself through an alias")
        self._open.add(id(node))
        value = self._mapping(node) if isinstance(node, yaml.MappingNode) else self._sequence(node)
        # The same anchor may be used again beside this place, only not inside it.
        self._open.remove(id(node))
        return value

    def _sequence(self, node: yaml.Node) -> list[Any]:
        _check_tag(node, "seq")
        return [self.read(item) for item in node.value]

    def _mapping(self, node: yaml.MappingNode) -> dict[str, Any]:
        _check_tag(node, "map")
        mapping: dict[str, Any] = {}
        own: set[str] = set()
        for key_node, value_node in node.value:
            is_merge = key_node.tag == PLAIN and key_node.value == MERGE
            # A second `<<` counts as a duplicate too: kubectl would let the later one win.
            key = MERGE if is_merge else _key(key_node, value_node)
            if key in own:
                raise _Unreadable(key_node.start_mark, _twice(key))
            own.add(key)
            if is_merge:
                mapping |= self._merged(value_node, own)
            else:
                mapping[key] = self.read(value_node)
        return mapping

    def _merged(self, node: yaml.Node, own: set[str]) -> dict[str, Any]:
        """What `<<` adds. Of several mappings the first wins.

        Keys before `<<` that it holds too are refused: kubectl takes the merged value, YAML's rules take the other.
        """
        value = self.read(node)
        parts = value if isinstance(value, list) else [value]
        if not all(isinstance(part, dict) for part in parts):
            raise _Unreadable(node.start_mark, f"{MERGE} merges {got(value)}, expected a mapping or a list of mappings")
        merged: dict[str, Any] = {}
        for part in parts:
            merged = {**part, **merged}  # earlier parts win
        if both := [key for key in merged if key in own]:
            raise _Unreadable(node.start_mark, f"it also holds {both[0]!r}, a key before {MERGE}; put {MERGE} first")
        return merged


def _scalar(node: yaml.ScalarNode) -> Any:
    if node.tag != PLAIN:
        _check_tag(node, "str")
        return node.value
    try:
        return read_scalar(node.value)
    except NotFinite as error:
        raise _Unreadable(node.start_mark, _not_finite(node.value)) from error


def _key(node: yaml.Node, value: yaml.Node) -> str:
    if not isinstance(node, yaml.ScalarNode):
        raise _Unreadable(node.start_mark, "got a mapping or a list as a key, expected text; quote it")
    key = _scalar(node)
    if not isinstance(key, str):
        # Within braces, a comma ends the value before it: 0,01 is the value 0 and the key 01, which has no value.
        is_rest = node.value.isdecimal() and value.value == ""
        point = f"; if it is the end of a number, write a point: .{node.value}" if is_rest else ""
        raise _Unreadable(
            node.start_mark, f"got the key {node.value}, which YAML reads as {json.dumps(key)}; quote it{point}"
        )
    return key


def _check_tag(node: yaml.Node, kind: str) -> None:
    """Other tags change a value in ways that kubectl and PyYAML do not agree on."""
    if node.tag != STANDARD_TAG + kind:
        tag = node.tag.replace(STANDARD_TAG, "!!")
        raise _Unreadable(node.start_mark, f"the tag {tag} is not supported; write the value without it")


def _not_finite(text: str) -> str:
    return f"got {text}, expected a number that JSON can hold"


def _twice(key: str) -> str:
    return f"the key {key!r} appears twice; remove one"


def _mark_at(text: str, position: int) -> yaml.Mark:
    before = text[:position]
    # A ReaderError has a position in the text instead of a line and column.
    return yaml.Mark("", position, before.count("\n"), position - (before.rfind("\n") + 1), None, 0)


def _explain(error: yaml.MarkedYAMLError, text: str) -> _Unreadable:
    """PyYAML's error in plain English, with the line where a user has to look."""
    problem, mark, start = error.problem or "cannot be read", error.problem_mark, error.context_mark
    if mark is not None and problem.startswith(r"found character '\t'"):
        line = text.splitlines()[mark.line]
        # PyYAML says the same of both; the remedy differs.
        if not line[: mark.column].strip():
            return _tab_indentation(mark)
        return _Unreadable(mark, "a tab is used as a space; write a space")
    # PyYAML notices a missing colon one line later; the context mark is where the key starts.
    if start is not None and problem == "could not find expected ':'":
        return _Unreadable(start, "expected 'key: value'")
    for pattern, explanation in _EXPLANATIONS:
        if found := pattern.match(problem):
            return _Unreadable(mark, explanation(found, start.line + 1 if start else 0))
    return _Unreadable(mark, problem)


def _tab_indentation(mark: yaml.Mark) -> _Unreadable:
    error = _Unreadable(None, "a tab is used for indentation; use spaces")
    error.fault = Fault(f"line {mark.line + 1}", error.fault.problem)
    return error


_Explanation = Callable[[re.Match[str], int], str]
# The patterns are PyYAML's own words. If a release changes them, the user sees those instead, and a test fails.
_EXPLANATIONS: tuple[tuple[re.Pattern[str], _Explanation], ...] = (
    (
        re.compile(r"found character '(.)' that cannot start any token"),
        lambda found, _: f"a value cannot start with {found[1]}; quote it",
    ),
    (
        re.compile("mapping values are not allowed here"),
        lambda *_: "a plain value cannot contain ': '; quote it, or correct the indentation",
    ),
    (
        re.compile(r"expected <block end>, but found '<scalar>'"),
        lambda *_: "unexpected text after a quoted value; quote the whole value",
    ),
    (re.compile("expected <block end>"), lambda *_: "the indentation does not match the lines above"),
    (
        re.compile(r"expected ',' or '(.)'"),
        lambda found, line: f"expected ',' or '{found[1]}' for the bracket opened on line {line}",
    ),
    (
        re.compile("found unexpected end of stream"),
        lambda _, line: f"the quotation mark opened on line {line} is not closed",
    ),
    (
        re.compile("expected the node content, but found '<stream end>'"),
        lambda *_: "the text ends where a value belongs",
    ),
    (
        re.compile("expected the node content, but found '(.*)'"),
        lambda found, _: f"expected a value before {found[1]}; write one, or quote {found[1]} if it is text",
    ),
    (re.compile("sequence entries are not allowed here"), lambda *_: "a list item '- ' must start on its own line"),
    (
        re.compile("found undefined alias '(.*)'"),
        lambda found, _: f"the alias *{found[1]} has no anchor &{found[1]} before it; quote it if it is text",
    ),
    (
        re.compile("found unknown escape character '(.)'"),
        lambda found, _: rf"\{found[1]} is not an escape of double quotes; use single quotes",
    ),
    (re.compile("expected '<document start>'"), lambda *_: "a second document must start with '---'"),
    (re.compile("second occurrence"), lambda *_: "the same anchor is defined twice; rename one"),
)
