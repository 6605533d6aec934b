"""JSON schema of our types as a Kubernetes structural schema: no $ref, no anyOf, no null.

A keyword that the API server cannot express raises UnsupportedSchema instead of becoming a weaker schema. A tagged
union becomes one object: the tag is an enum, and CEL rules say which fields belong to which tag.
"""

from __future__ import annotations

import ast
import functools
import inspect
import itertools
import re
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from distillchain_api.base import Document
from distillchain_api.cel import cel

Schema = dict[str, Any]

COPIED = (
    *("type", "description", "format", "pattern", "minimum", "maximum", "minLength", "maxLength"),
    *("minItems", "maxItems", "minProperties", "maxProperties", "enum", "default", "required"),
)
# The API server writes exclusive bounds as OpenAPI 3.0 does: a flag beside the bound.
EXCLUSIVE_BOUNDS = {"exclusiveMinimum": "minimum", "exclusiveMaximum": "maximum"}
CHILDREN = ("properties", "items", "additionalProperties")
LEFT_OUT = ("title",)
UNION = ("oneOf", "discriminator")
REFERENCES = ("$ref", "$defs", "anyOf")
EXTENSION = "x-kubernetes-"
RULES = "x-kubernetes-validations"
_SELF = re.compile(r"\bself\b")  # in a rule: the object that the rule belongs to
# Without one of these a schema must have a type.
UNTYPED = ("x-kubernetes-int-or-string", "x-kubernetes-preserve-unknown-fields")


class UnsupportedSchema(TypeError):
    """A type whose values the API server could not check; the message names the field."""


def structural_schema(model: type[Document], *, with_defaults: bool = True) -> Schema:
    """The OpenAPI schema of a document in the form that the API server requires.

    Raises: UnsupportedSchema.
    """
    schema = model.model_json_schema(by_alias=True, schema_generator=_WithDocstrings)
    return _Converter(schema.get("$defs", {}), with_defaults=with_defaults).convert(schema, model.__name__)


class _WithDocstrings(GenerateJsonSchema):
    """Describes each field by the text below it.

    Pydantic does this too (use_attribute_docstrings), but reads the sources of all classes whenever they are imported,
    which took a sixth of the time that a short command needs.
    """

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        """The schema of a class."""
        found = super().model_schema(schema)
        cls: type[BaseModel] = schema["cls"]
        for name, info in cls.model_fields.items():
            # A class that declares a field again describes it again.
            owner = next(base for base in cls.__mro__ if name in inspect.get_annotations(base))
            if text := _docstrings(owner).get(name):
                found["properties"][info.alias or name]["description"] = text
        return found


@functools.cache
def _docstrings(cls: type) -> dict[str, str]:
    """The texts below the fields that a class declares itself."""
    try:
        source = inspect.getsource(cls)
    except OSError:  # a class that a program has made
        return {}
    (definition,) = ast.parse(textwrap.dedent(source)).body
    assert isinstance(definition, ast.ClassDef)
    return {
        field.target.id: inspect.cleandoc(text.value.value)
        for field, text in itertools.pairwise(definition.body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant) and isinstance(text.value.value, str)
    }


class _Converter:
    """Converts the schemas of one document, which share `defs`."""

    def __init__(self, defs: Mapping[str, Schema], *, with_defaults: bool) -> None:
        self._defs = defs
        self._with_defaults = with_defaults

    def convert(self, schema: Schema, path: str) -> Schema:
        """The structural form of `schema`; `path` is where it is, for messages."""
        schema = self._resolve(schema, path)
        if "oneOf" in schema:
            return self._union(schema, path)
        self._check(schema, path)
        out = {key: schema[key] for key in COPIED if key in schema}
        # A structural schema has no `const`.
        if "const" in schema:
            out["enum"] = [schema["const"]]
        for flag, bound in EXCLUSIVE_BOUNDS.items():
            if flag in schema:
                out[bound], out[flag] = schema[flag], True
        out |= {key: value for key, value in schema.items() if key.startswith(EXTENSION)}
        if "description" in out:
            # A docstring's line breaks mean nothing in `kubectl explain` and would make the CRD's YAML hard to read.
            out["description"] = " ".join(out["description"].split())
        self._children(schema, out, path)
        self._default(out, path)
        return out

    def _resolve(self, schema: Schema, path: str) -> Schema:
        """Follows $ref and `X | None`; keywords beside them, such as description and default, take precedence."""
        # The field's own description and default say more than those of its type.
        beside = {key: value for key, value in schema.items() if key not in REFERENCES}
        if "$ref" in schema:
            return {**self._resolve(self._defs[schema["$ref"].rsplit("/", 1)[-1]], path), **beside}
        if "anyOf" in schema:
            # `X | None` is a field that may be absent; the API server drops a null of a field that is not nullable.
            options = [option for option in schema["anyOf"] if option.get("type") != "null"]
            if len(options) != 1:
                raise UnsupportedSchema(
                    f"{path}: a union of {len(options)} types without a discriminator; the API server cannot tell them "
                    "apart; use Field(discriminator=...) or one type"
                )
            return {**self._resolve(options[0], path), **beside}
        return beside

    def _check(self, schema: Schema, path: str) -> None:
        known = {*COPIED, *EXCLUSIVE_BOUNDS, *CHILDREN, *LEFT_OUT, "const"}
        for keyword in schema:
            if keyword not in known and not keyword.startswith(EXTENSION):
                raise UnsupportedSchema(f"{path}: the JSON schema keyword {keyword} has no structural form")
        if not isinstance(schema.get("type"), str) and not any(schema.get(key) for key in UNTYPED):
            raise UnsupportedSchema(f"{path}: no type; expected one of object, array, string, integer, number, boolean")
        if schema.get("type") == "array" and "items" not in schema:
            raise UnsupportedSchema(f"{path}: a list without a type of its items")
        if schema.get("type") == "object" and not _has_fields(schema):
            raise UnsupportedSchema(f"{path}: an object without known fields; add x-kubernetes-preserve-unknown-fields")

    def _children(self, schema: Schema, out: Schema, path: str) -> None:
        if "properties" in schema:
            out["properties"] = {
                name: self.convert(child, f"{path}.{name}") for name, child in schema["properties"].items()
            }
        if "items" in schema:
            out["items"] = self.convert(schema["items"], f"{path}[]")
        if isinstance(extra := schema.get("additionalProperties"), dict):
            out["additionalProperties"] = self.convert(extra, f"{path}.*")

    def _default(self, out: Schema, path: str) -> None:
        """Of an object the children carry the defaults; an empty object is enough for the API server to reach them."""
        # pydantic writes a default of null for `X | None`. Here it means that the field may be absent.
        if not self._with_defaults or out.get("default", ...) is None:
            out.pop("default", None)
        # The API server fills in the defaults of a field only if its object is there, hence a default of {} for the
        # object.
        if "properties" in out and (default := out.pop("default", None)) is not None:
            for name, child in out["properties"].items():
                stated = default.get(name)
                if stated is not None and child.get("default") != stated and not isinstance(stated, dict):
                    raise UnsupportedSchema(
                        f"{path}.{name}: the default of {path} is {stated!r}, its own is {child.get('default')!r}; "
                        "the API server would use its own"
                    )
            # Only then: an empty object without defaults would show up in every stored chain for nothing.
            if _has_defaults(out):
                out["default"] = {}

    def _union(self, schema: Schema, path: str) -> Schema:
        if "discriminator" not in schema:
            raise UnsupportedSchema(f"{path}: a oneOf without a discriminator; use Field(discriminator=...)")
        # A keyword beside the union would be lost, because the merged schema is built from the members alone.
        if others := set(schema) - {*UNION, *LEFT_OUT, "description", "default"}:
            raise UnsupportedSchema(f"{path}: {', '.join(sorted(others))} beside a union")
        mapping: dict[str, str] = schema["discriminator"]["mapping"]
        members = {tag: self.convert({"$ref": reference}, f"{path}({tag})") for tag, reference in mapping.items()}
        merged = merge_tagged(members, tag_field=schema["discriminator"]["propertyName"], path=path)
        if "description" in schema:
            merged["description"] = " ".join(schema["description"].split())
        return merged


def _has_fields(schema: Schema) -> bool:
    """`additionalProperties: true` does not count: the API server would prune such a map to an empty one."""
    return (
        "properties" in schema
        or isinstance(schema.get("additionalProperties"), dict)
        or any(schema.get(key) for key in UNTYPED)
    )


def _has_defaults(schema: Schema) -> bool:
    return any("default" in child for child in schema["properties"].values())


def merge_tagged(members: Mapping[str, Schema], *, tag_field: str, path: str) -> Schema:
    """One object schema for a tagged union of objects.

    Args:
        members: structural schema of each member, by the tag that selects it.
        tag_field: the property that holds the tag.
    Raises: UnsupportedSchema when two members give one property schemas that no rule could tell apart.
    """
    without_tag = {
        tag: {**member, "properties": {name: it for name, it in member["properties"].items() if name != tag_field}}
        for tag, member in members.items()
    }
    merged, rules = _merge(without_tag, f"self.{tag_field}", at="self", path=path)
    # The API server has no `discriminator`: an enum and rules take its place.
    selector = {"type": "string", "description": "Selects which of the other fields apply.", "enum": list(members)}
    return {
        "type": "object",
        "required": [tag_field, *(name for name in merged.get("required", ()) if name != tag_field)],
        "properties": {tag_field: selector, **merged["properties"]},
        **({RULES: rules} if rules else {}),
    }


def _merge(members: Mapping[str, Schema], tag: str, *, at: str, path: str) -> tuple[Schema, list[dict[str, str]]]:
    """One object schema for the objects of several tags, and the rules that narrow it down for each tag.

    Args:
        tag: CEL expression of the tag.
        at: CEL expression of the object. The rules belong to the object that has the tag, perhaps further out.
    """
    properties: dict[str, Schema] = {}
    owners: dict[str, list[str]] = {}
    nested: list[dict[str, str]] = []
    for name in dict.fromkeys(name for member in members.values() for name in member["properties"]):
        given = {key: member["properties"][name] for key, member in members.items() if name in member["properties"]}
        owners[name] = list(given)
        if _are_different_objects(given):
            properties[name], rules = _merge(given, tag, at=f"{at}.{name}", path=f"{path}.{name}")
            # An optional object may be missing, and a rule must not fail for that.
            if any(name not in member.get("required", ()) for member in members.values()):
                rules = [{**rule, "rule": f"!has({at}.{name}) || ({rule['rule']})"} for rule in rules]
            nested += rules
            continue
        for key, schema in given.items():
            properties[name] = _same(properties.get(name, schema), schema, f"{path}.{name}", key)
        if text := _description(given):
            properties[name]["description"] = text
        if len(given) < len(members) and "default" in properties[name]:
            # The API server would fill it in for every tag. The types fill it in for those that have it.
            properties[name] = _without_default(properties[name])
    required = [set(member.get("required", ())) for member in members.values()]
    # A field that only some tags need cannot be `required`, which holds for all; a rule asks for it instead.
    common = set.intersection(*required)
    own, rules = _member_rules(members, tag, at=at)
    merged: Schema = {"type": "object", "properties": properties}
    if text := _description(members):
        merged["description"] = text
    if common:
        merged["required"] = [name for name in properties if name in common]
    # Rules of all members stay on an inner object, where they are; those of the outermost are returned with the rest.
    if own and at != "self":
        merged[RULES] = own
        own = []
    return merged, [
        *_field_rules(members, owners, tag, at=at, common=common),
        *_choice_rules(members, properties, tag, at=at),
        *nested,
        *own,
        *rules,
    ]


def _are_different_objects(schemas: Mapping[str, Schema]) -> bool:
    """Whether a property is an object for every tag that has it, with different fields or rules."""
    bare = [{key: value for key, value in schema.items() if key != "description"} for schema in schemas.values()]
    return all("properties" in schema for schema in bare) and any(schema != bare[0] for schema in bare)


def _same(known: Schema, schema: Schema, path: str, tag: str) -> Schema:
    """The schema of a property that several members have.

    The choices of an enum may differ by member, as metrics differ by task type: all of them are allowed here, and
    a rule narrows them for each tag. A default that differs is left to the types: the API server knows one per field.
    """
    # These three may differ; everything else must be equal, because one property has one schema.
    differs = dict.fromkeys(("description", "enum", "default"))
    if {**known, **differs} != {**schema, **differs} or ("enum" in known) != ("enum" in schema):
        raise UnsupportedSchema(f"{path}: {tag} gives this field another schema than the members before it")
    if "enum" not in known and known.get("default") != schema.get("default"):
        raise UnsupportedSchema(f"{path}: {tag} gives this field another default than the members before it")
    merged = dict(known)
    if "enum" in known:
        merged["enum"] = list(dict.fromkeys([*known["enum"], *schema["enum"]]))
    if known.get("default") != schema.get("default"):
        merged.pop("default", None)
    return merged


def _description(schemas: Mapping[str, Schema]) -> str:
    """What a field means for each tag, where that differs; and its default, where the API server cannot fill it in."""
    has_own_defaults = len({str(schema.get("default")) for schema in schemas.values()}) > 1
    texts: dict[str, list[str]] = {}
    for tag, schema in schemas.items():
        text = schema.get("description", "")
        if has_own_defaults and "default" in schema:
            text = f"{text} Default: {schema['default']}."
        texts.setdefault(text.strip(), []).append(tag)
    if len(texts) == 1:
        return next(iter(texts))
    return " ".join(f"{', '.join(tags)}: {text}" for text, tags in texts.items() if text)


def _without_default(schema: Schema) -> Schema:
    rest = {key: value for key, value in schema.items() if key != "default"}
    if schema["default"] == {}:
        return rest
    # The default still applies, in the types; without this sentence `kubectl explain` would not mention it.
    text = f"{schema.get('description', '')} Default: {schema['default']}."
    return {**rest, "description": text.strip()}


def _field_rules(
    members: Mapping[str, Schema], owners: Mapping[str, list[str]], tag: str, *, at: str, common: set[str]
) -> Iterator[dict[str, str]]:
    """Which fields a tag may have, and which it needs beyond those that all need."""
    for name, tags in owners.items():
        shown = _field(at, name)
        if len(tags) < len(members):
            yield cel(
                f"!has({at}.{name}) || {tag} in {_cel_list(tags)}",
                f"{shown} belongs to {_field(tag)} {' or '.join(tags)}; remove it",
                fieldPath=f".{shown}",
            )
        for key in tags:
            if name in members[key].get("required", ()) and name not in common:
                yield cel(f"{tag} != '{key}' || has({at}.{name})", f"{_field(tag)} {key} needs {shown}; add it")


def _choice_rules(
    members: Mapping[str, Schema], properties: Mapping[str, Schema], tag: str, *, at: str
) -> Iterator[dict[str, str]]:
    """For enums that differ by member: what each tag allows."""
    for name, merged in properties.items():
        for key, member in members.items():
            own = member["properties"].get(name, merged).get("enum")
            if own is not None and own != merged["enum"]:
                shown = _field(at, name)
                yield cel(
                    f"{tag} != '{key}' || !has({at}.{name}) || {at}.{name} in {_cel_list(own)}",
                    f"{shown}: {_field(tag)} {key} expects {' or '.join(own)}",
                    fieldPath=f".{shown}",
                )


def _member_rules(
    members: Mapping[str, Schema], tag: str, *, at: str
) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """The members' own rules: those that all have, as they are, and those of one tag, for the object with the tag."""
    own = {key: member.get(RULES, []) for key, member in members.items()}
    # The API server bounds the total cost of rules, so one that all members have is written once.
    shared = [rule for rule in next(iter(own.values())) if all(rule in rules for rules in own.values())]
    narrowed = []
    for key, rules in own.items():
        for rule in rules:
            if rule in shared:
                continue
            moved = {**rule, "rule": f"{tag} != '{key}' || ({_SELF.sub(at, rule['rule'])})"}
            if "fieldPath" in rule and at != "self":
                moved["fieldPath"] = f".{_field(at)}{rule['fieldPath']}"
            narrowed.append(moved)
    return shared, narrowed


def _field(at: str, name: str = "") -> str:
    """`dataset.text` for the CEL expression `self.dataset` and the field `text`."""
    return ".".join(filter(None, [*at.split(".")[1:], name]))


def _cel_list(values: list[str]) -> str:
    return "[" + ", ".join(f"'{value}'" for value in values) + "]"
