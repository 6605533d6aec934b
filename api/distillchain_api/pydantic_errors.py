"""Turns pydantic's errors into the faults of a document: fields as the user wrote them, sentences from `Expect`."""

from __future__ import annotations

import difflib
import json
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from distillchain_api.faults import Expect, Fault, expected, join_path, nearest, path_of, quote, written_as
from distillchain_api.yaml_scalars import NotFinite, read_scalar

COMMON_NAMES = frozenset({"name", "uri", "model"})
NEARLY_THE_SAME = 0.9  # difflib's ratio: one letter too few or too many of ten
MOST_HOMES = 3  # places of a field that are named; more would not help


def faults_of(error: ValidationError, model: type[BaseModel]) -> list[Fault]:
    """All faults of one document, in the order of its fields."""
    return [fault for details in error.errors(include_url=False) for fault in _faults(details, model)]


def _faults(details: ErrorDetails, model: type[BaseModel]) -> list[Fault]:
    if details["type"] == "faults":  # of our own validators, with the sentences ready
        here = path_of(_locate(model, details["loc"]).path)
        found: list[Fault] = details["ctx"]["faults"]
        return [Fault(join_path(here, fault.field), fault.problem) for fault in found]
    return [_fault(details, model)]


def _fault(details: ErrorDetails, model: type[BaseModel]) -> Fault:
    kind, value, context = details["type"], details["input"], details.get("ctx", {})
    place = _locate(model, details["loc"])
    path, expect = path_of(place.path), place.expect
    if kind == "extra_forbidden":
        # The location includes the unknown field, so the known ones belong to its parent.
        parent = _locate(model, details["loc"][:-1])
        owner, name = parent.annotation, str(place.path[-1])
        if tags := [tag for tag, member in parent.members.items() if name in _field_names(member)]:
            return Fault(path, f"unknown field; it belongs to {parent.tag_field} {' or '.join(tags)}; remove it")
        # Not the place itself: there another type of a tagged union further out has the field.
        homes = [home for home in dict.fromkeys(_homes(model, name)) if home != path_of(parent.path)]
        # A name that is right elsewhere: the field that is spelt most alike would send the user to another one.
        if 0 < len(homes) <= MOST_HOMES and name not in COMMON_NAMES:
            belongs = f"it belongs to {' or '.join(homes)}"
            # Both may be meant, such as by `stage` in the spec, which lacks `stages`.
            alike = difflib.get_close_matches(name, _field_names(owner), n=1, cutoff=NEARLY_THE_SAME)
            return Fault(
                path, f"unknown field; {f'did you mean {alike[0]}? Otherwise {belongs}' if alike else belongs}"
            )
        return Fault(path, f"unknown field; {nearest(name, _field_names(owner))}")
    if kind == "missing":
        what = f", expected {expect.expectation}" if expect else ""
        return Fault(path, f"missing{what}; add it")
    if kind == "fault":  # of our own validators, with the sentence ready
        return Fault(join_path(path, context.get("field", "")), context["problem"])
    if kind == "union_tag_not_found":
        return Fault(join_path(path, _tag_field(context)), "missing; add it")
    if kind == "union_tag_invalid":
        tags = context["expected_tags"]
        remedy = _meant(context["tag"], _quoted_words(tags))
        return Fault(join_path(path, _tag_field(context)), expected(context["tag"], tags.replace(", ", " or "), remedy))
    if kind == "json_invalid":
        return Fault(path, f"not JSON: {details['msg']}")
    expectation = expect.expectation if expect else _plain(details)
    # Otherwise "5e-3" as a learningRate would be refused as if the number were wrong.
    if _is_quoted(value, kind):
        remedy = "drop the quotes" if place.accepts(read_scalar(value.strip())) else "write one without quotes"
        return Fault(path, f"got the text {json.dumps(value)}, expected {expectation}; {remedy}")
    remedy = expect.remedy if expect else _meant(value, _quoted_words(context.get("expected", "")))
    # A duration such as 24 would be refused with quotation marks too.
    if kind == "string_type" and any(place.accepts(text) for text in written_as(value)):
        remedy = quote(value)
    return Fault(path, expected(value, expectation, remedy))


def _meant(value: Any, words: Sequence[str]) -> str:
    """Which of a few fixed words was meant by a similar one; empty: none."""
    if not isinstance(value, str):
        return ""
    folded = {_fold(word): word for word in words}
    if meant := folded.get(_fold(value)):
        return f"write {meant}"
    match = difflib.get_close_matches(_fold(value), folded, n=1)
    return f"did you mean {folded[match[0]]}?" if match else ""


def _quoted_words(sentence: str) -> list[str]:
    """The words of pydantic's `'None' or 'Full'`."""
    return re.findall(r"'([^']+)'", sentence)


def _fold(word: str) -> str:
    """`text-classification` as `textclassification`: without case and separators."""
    return re.sub(r"[-_ ]", "", word.casefold())


def _homes(annotation: Any, name: str, path: str = "") -> Iterator[str]:
    """The places in a document whose type has a field of this name; `[]` stands for any item of a list."""
    if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        inside = f"{path}[]" if typing.get_origin(annotation) is list else path
        for argument in typing.get_args(annotation):
            yield from _homes(argument, name, inside)
        return
    for info in annotation.model_fields.values():
        if info.alias == name and path:
            yield path
        yield from _homes(info.annotation, name, join_path(path, info.alias or ""))


def _is_quoted(value: Any, kind: str) -> bool:
    """Whether a text would be right without its quotes, such as "5e-3" where a number belongs."""
    if not isinstance(value, str):
        return False
    try:
        unquoted = read_scalar(value.strip())
    except NotFinite:
        return False
    if kind == "bool_type":
        return isinstance(unquoted, bool)
    return kind in ("int_type", "float_type") and isinstance(unquoted, int | float) and not isinstance(unquoted, bool)


def _tag_field(context: Mapping[str, Any]) -> str:
    # pydantic quotes the name.
    return str(context["discriminator"]).strip("'")


def _plain(details: ErrorDetails) -> str:
    """Pydantic's own wording as an expectation, for fields that need no special one."""
    words = details["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    if details["type"] == "string_type":
        return "text"
    if details["type"] == "bool_type":
        return "true or false"
    if details["type"] == "int_type":
        return "a whole number"
    if details["type"] == "list_type":
        return "a list"
    return words[0].lower() + words[1:] if words else "another value"


@dataclass
class _Place:
    """A location in a document, and the type that belongs there."""

    annotation: Any
    """None: beyond the known types, as in a free map."""
    metadata: list[Any] = field(default_factory=list)
    path: list[int | str] = field(default_factory=list)
    """As the user wrote it."""
    members: Mapping[str, Any] = field(default_factory=dict)
    """Of a tagged union: the types by their tags."""
    tag_field: str = ""

    @property
    def expect(self) -> Expect | None:
        """The field's own expectation."""
        nested = (item.metadata if isinstance(item, FieldInfo) else [item] for item in self.metadata)
        return next((item for items in nested for item in items if isinstance(item, Expect)), None)

    def accepts(self, value: Any) -> bool:
        """Whether the type of this place, without its neighbours, accepts a value."""
        # A model's field has an alias, which only its model can use; its constraints stand beside it.
        constraints = [item for item in self.metadata if not (isinstance(item, FieldInfo) and item.alias)]
        constrained: Any = Annotated[self.annotation or Any, None, *constraints]
        try:
            TypeAdapter(constrained).validate_python(value)
        except ValidationError:
            return False
        return True


def _locate(model: type[BaseModel], loc: Sequence[int | str]) -> _Place:
    """Follows pydantic's location, without names of validators and tags of unions: no document contains them."""
    place = _Place(model)
    for part in loc:
        if isinstance(part, str) and ("[" in part or part == "nullable"):
            continue  # such as function-after[...]
        _strip(place)
        # pydantic puts the tag of a union into the location, and the document has no such key.
        members = _members(place)
        if part in members:
            place.members, place.tag_field = members, _discriminator(place)
            place.annotation, place.metadata = members[part], []
            continue
        place.members, place.tag_field = {}, ""
        place.path.append(part)
        _enter(place, part)
    _strip(place)
    return place


def _enter(place: _Place, part: int | str) -> None:
    annotation = place.annotation
    if isinstance(part, int) or typing.get_origin(annotation) in (dict, Mapping):
        arguments = typing.get_args(annotation)
        place.annotation = (arguments[0] if isinstance(part, int) else arguments[-1]) if arguments else None
        place.metadata = []
        return
    fields = annotation.model_fields.items() if _is_model(annotation) else ()
    info = next((info for name, info in fields if part in (name, info.alias)), None)
    place.annotation = info.annotation if info else None
    place.metadata = [info, *info.metadata] if info else []


def _strip(place: _Place) -> None:
    """Unwraps Annotated, NewType and Optional, so that the type itself remains."""
    # Wrappers nest in any order, such as Annotated[Annotated[NewType] | None].
    while True:
        annotation = place.annotation
        if hasattr(annotation, "__supertype__"):
            place.annotation = annotation.__supertype__
        elif hasattr(annotation, "__metadata__"):
            place.annotation, place.metadata = annotation.__origin__, [*place.metadata, *annotation.__metadata__]
        elif type(None) in typing.get_args(annotation):
            options = [option for option in typing.get_args(annotation) if option is not type(None)]
            if len(options) != 1:
                return
            place.annotation = options[0]
        else:
            return


def _members(place: _Place) -> Mapping[Any, Any]:
    """The members of a tagged union by their tags; none for another type."""
    tag_field = _discriminator(place)
    if not tag_field:
        return {}
    members = typing.get_args(place.annotation)
    return {typing.get_args(member.model_fields[tag_field].annotation)[0]: member for member in members}


def _discriminator(place: _Place) -> str:
    """The field that tells the members of a tagged union apart; empty for another type."""
    infos = [item for item in place.metadata if isinstance(item, FieldInfo)]
    return next((info.discriminator for info in infos if isinstance(info.discriminator, str)), "")


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _field_names(annotation: Any) -> list[str]:
    fields = annotation.model_fields.items() if _is_model(annotation) else ()
    return [info.alias or name for name, info in fields]
