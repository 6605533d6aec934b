"""YAML as kubectl reads it: 1e-4 is a number, a key may stand only once, one document of one kind.

PyYAML alone would read 1e-4 as text and let the second of two equal keys win silently.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from distillchain_api.faults import BadDocument, Fault


class _Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2 floats and without duplicate keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(
                    None, None, f"got the key {key!r}, expected text; quote it", key_node.start_mark
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} stands twice; remove one", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)$"),
    list("-+.0123456789"),
)


def load_yaml(text: str, *, source: str) -> dict[str, Any]:
    """The one mapping in `text`.

    Raises: BadDocument naming line and column when it is not YAML, not one document or not a mapping.
    """
    try:
        documents = [d for d in yaml.load_all(text, Loader=_Loader) if d is not None]
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        problem = getattr(error, "problem", None) or str(error)
        raise BadDocument(source, [Fault("", f"{where}{problem}")]) from error
    if len(documents) != 1:
        raise BadDocument(source, [Fault("", f"got {len(documents)} documents, expected one; split the file")])
    if not isinstance(documents[0], dict):
        raise BadDocument(source, [Fault("", "expected a mapping with apiVersion, kind, metadata and spec")])
    return documents[0]
