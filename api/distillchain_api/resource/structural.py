"""JSON schema of our types as a Kubernetes structural schema: no $ref, no anyOf, no null.

A keyword that the API server cannot express raises UnsupportedSchema instead of becoming a weaker schema. A tagged
union becomes one object: the tag is an enum, and CEL rules say which fields belong to which tag.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

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
# Without one of these a schema must have a type.
UNTYPED = ("x-kubernetes-int-or-string", "x-kubernetes-preserve-unknown-fields")


class UnsupportedSchema(TypeError):
    """A type whose values the API server could not check; the message names the field."""


def structural_schema(model: type[Document], *, with_defaults: bool = True) -> Schema:
    """The OpenAPI schema of a document in the form that the API server requires.

    Raises: UnsupportedSchema.
    """
    schema = model.model_json_schema(by_alias=True)
    return _Converter(schema.get("$defs", {}), with_defaults=with_defaults).convert(schema, model.__name__)


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
    Raises: UnsupportedSchema when two members give one property different schemas.
    """
    properties: dict[str, Schema] = {}
    for tag, member in members.items():
        for name, schema in member["properties"].items():
            if name != tag_field:
                properties[name] = _same(properties.get(name, schema), schema, f"{path}.{name}", tag)
    owners = {name: [tag for tag, member in members.items() if name in member["properties"]] for name in properties}
    for name, tags in owners.items():
        if len(tags) < len(members) and "default" in properties[name]:
            # The API server would fill it in for every tag. The types fill it in for those that have it.
            properties[name] = _without_default(properties[name])
    # The API server has no `discriminator`: an enum and rules take its place.
    selector = {"type": "string", "description": "Selects which of the other fields apply.", "enum": list(members)}
    required = [set(member.get("required", ())) for member in members.values()]
    # A field that only some tags need cannot be `required`, which holds for all; a rule asks for it instead.
    common = set.intersection(*required)
    rules = [
        *_field_rules(members, owners, tag_field=tag_field, common=common),
        *_choice_rules(members, properties, tag_field=tag_field),
        *_member_rules(members, tag_field=tag_field),
    ]
    return {
        "type": "object",
        "required": [tag_field, *(name for name in properties if name in common)],
        "properties": {tag_field: selector, **properties},
        **({RULES: rules} if rules else {}),
    }


def _same(known: Schema, schema: Schema, path: str, tag: str) -> Schema:
    """The schema of a property that several members have; the first description is used.

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


def _without_default(schema: Schema) -> Schema:
    rest = {key: value for key, value in schema.items() if key != "default"}
    if schema["default"] == {}:
        return rest
    # The default still applies, in the types; without this sentence `kubectl explain` would not mention it.
    text = f"{schema.get('description', '')} Default: {schema['default']}."
    return {**rest, "description": text.strip()}


def _field_rules(
    members: Mapping[str, Schema], owners: Mapping[str, list[str]], *, tag_field: str, common: set[str]
) -> Iterator[dict[str, str]]:
    """Which fields a tag may have, and which it needs beyond those that all need."""
    for name, tags in owners.items():
        if len(tags) < len(members):
            yield cel(
                f"!has(self.{name}) || self.{tag_field} in {_cel_list(tags)}",
                f"{name} belongs to {tag_field} {' or '.join(tags)}; remove it",
                fieldPath=f".{name}",
            )
        for tag in tags:
            if name in members[tag].get("required", ()) and name not in common:
                yield cel(f"self.{tag_field} != '{tag}' || has(self.{name})", f"{tag_field} {tag} needs {name}; add it")


def _choice_rules(
    members: Mapping[str, Schema], properties: Mapping[str, Schema], *, tag_field: str
) -> Iterator[dict[str, str]]:
    """For enums that differ by member: what each tag allows."""
    for name, merged in properties.items():
        for tag, member in members.items():
            own = member["properties"].get(name, merged).get("enum")
            if own is not None and own != merged["enum"]:
                yield cel(
                    f"self.{tag_field} != '{tag}' || !has(self.{name}) || self.{name} in {_cel_list(own)}",
                    f"{name}: {tag_field} {tag} expects {' or '.join(own)}",
                    fieldPath=f".{name}",
                )


def _member_rules(members: Mapping[str, Schema], *, tag_field: str) -> Iterator[dict[str, str]]:
    """The members' own rules, each for its own tag; a rule that all have holds as it is."""
    own = {tag: member.get(RULES, []) for tag, member in members.items()}
    # The API server bounds the total cost of rules, so one that all members have is written once.
    shared = [rule for rule in next(iter(own.values())) if all(rule in rules for rules in own.values())]
    yield from shared
    for tag, rules in own.items():
        for rule in rules:
            if rule not in shared:
                yield {**rule, "rule": f"self.{tag_field} != '{tag}' || ({rule['rule']})"}


def _cel_list(values: list[str]) -> str:
    return "[" + ", ".join(f"'{value}'" for value in values) + "]"
