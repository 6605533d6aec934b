"""The pod of a chain: a PodTemplateSpec whose misspelt fields and wrong types are found before anything runs.

pod_fields.json holds the fields of the newest Kubernetes that this release knows. A cluster may know more, so the
operator leaves unknown fields to the API server's strict dry run and uses this table only to name the field meant.
"""

from __future__ import annotations

import difflib
import functools
import importlib.resources
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, ValidationInfo, WithJsonSchema

from distillchain_api.cel import rules
from distillchain_api.faults import Expect, Fault, error_of, expected, join_path, quote
from distillchain_api.resource.metadata import annotation_faults, label_faults
from distillchain_api.resource.quantities import amount_faults, quantity_problem

ROOT = "PodTemplateSpec"
FROM_CLUSTER = "from_cluster"
"""Key of the validation context: the API server has accepted the chain, and decides about fields of pods too."""
NAMED_ITEMS = ("containers", "initContainers", "env", "volumes", "imagePullSecrets")
"""Lists that the operator merges by name, so an item without one cannot be placed."""
# How alike two names are, from 0 to 1. volumeMounts of a pod is 0.74 like volumes, but is a field of its containers;
# nodeSelctor is 0.96 like nodeSelector.
SIMILAR, MISSPELT = 0.6, 0.8
# Of whole manifests. They also occur deep inside of a pod (`kind` in spec.volumes[].azureDisk), but that is not meant.
MANIFEST_FIELDS = ("apiVersion", "kind", "name", "namespace", "status")
ONLY_TWO = "a pod template has only metadata and spec; remove it"
API_SERVER_AUDIENCE = "https://kubernetes.default.svc"
MAX_POD_KEYS = 32  # a bound that the API server needs to estimate the cost of the rule


@functools.cache
def _table() -> tuple[str, dict[str, dict[str, str]]]:
    """The release of Kubernetes, and each of its types as field -> type (see distillchain_operator.pod_fields)."""
    text = (importlib.resources.files(__package__) / "pod_fields.json").read_text(encoding="utf-8")
    document = json.loads(text)
    return document["kubernetes"], document["types"]


def pod_faults(template: Mapping[str, Any]) -> Iterator[Fault]:
    """Wrong types, quantities, labels and items without a name in a PodTemplateSpec; fields are relative to it."""
    reported = set()
    for found in (*_type_faults(template), *_nameless(template), *_api_tokens(template)):
        if found.field not in reported:  # a quantity is found by itself and with its neighbours
            reported.add(found.field)
            yield found


def _type_faults(template: Mapping[str, Any]) -> Iterator[Fault]:
    for path, kind, value in _walk(template):
        if problem := _problem(kind, value):
            yield Fault(path, problem)
        # A map of text is checked by the name of its field, such as `labels`; everything else by its type.
        elif check := _CHECKS.get(path.rpartition(".")[2] if kind.startswith("{}") else kind):
            yield from (Fault(join_path(path, found.field), found.problem) for found in check(value))


def unknown_fields(template: Mapping[str, Any], *, field: str) -> Iterator[Fault]:
    """Fields that no PodTemplateSpec has, with the field that was probably meant.

    Args:
        field: where the template is, such as `spec.template.pod`: suggestions are written in full.
    """
    for path, kind, value in _walk(template):
        known = _table()[1].get(kind)
        if known is None or not isinstance(value, Mapping):
            continue
        for name in value:
            if name not in known:
                owner = join_path(field, path)
                yield Fault(join_path(path, name), f"unknown field; {_meant(name, known, owner=owner, field=field)}")


def _walk(template: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Path, type and value of every known field that is not null, the template itself first."""
    waiting: list[tuple[str, str, Any]] = [("", ROOT, template)]
    types = _table()[1]
    while waiting:
        path, kind, value = waiting.pop(0)
        yield path, kind, value
        inner: list[tuple[str, str, Any]] = []
        if kind.startswith("[]") and isinstance(value, list):
            inner = [(f"{path}[{index}]", kind[2:], item) for index, item in enumerate(value)]
        elif kind.startswith("{}") and isinstance(value, Mapping):
            inner = [(join_path(path, key), kind[2:], item) for key, item in value.items()]
        elif kind in types and isinstance(value, Mapping):
            fields = types[kind]
            inner = [(join_path(path, key), fields[key], item) for key, item in value.items() if key in fields]
        # A field that is null counts as absent, and removes what the operator's own template says. An item may not be.
        waiting += [entry for entry in inner if entry[2] is not None or entry[0].endswith("]")]


_SCALARS: dict[str, tuple[type | tuple[type, ...], str]] = {
    "string": (str, "text"),
    "integer": (int, "a whole number"),
    "number": ((int, float), "a number"),
    "boolean": (bool, "true or false"),
}


def _problem(kind: str, value: Any) -> str | None:
    """Why a value is not of its field's type; None when it is."""
    if kind in ("any", "quantity"):
        return quantity_problem(value) if kind == "quantity" else None
    if kind.startswith("[]"):
        return None if isinstance(value, list) else expected(value, "a list")
    if kind not in _SCALARS:
        return None if isinstance(value, Mapping) else expected(value, "a mapping")
    types, expectation = _SCALARS[kind]
    # In Python, True is an int.
    is_right = isinstance(value, types) and (kind == "boolean") == isinstance(value, bool)
    return None if is_right else expected(value, expectation, quote(value) if kind == "string" else "")


def _resources(resources: Mapping[str, Any]) -> Iterator[Fault]:
    """Incomplete: the operator's template may add a limit."""
    limits, requests = ({**(resources.get(key) or {})} for key in ("limits", "requests"))
    if all(isinstance(amounts, Mapping) for amounts in (limits, requests)):
        yield from amount_faults(limits, requests, complete=False)


_CHECKS: dict[str, Callable[[Mapping[str, Any]], Iterator[Fault]]] = {
    "labels": label_faults,
    "annotations": annotation_faults,
    "nodeSelector": label_faults,
    "ResourceRequirements": _resources,
}


def _nameless(template: Mapping[str, Any]) -> Iterator[Fault]:
    for path, _, value in _walk(template):
        if path.rpartition(".")[2] in NAMED_ITEMS and isinstance(value, list):
            for index, item in enumerate(value):
                if isinstance(item, Mapping) and not isinstance(item.get("name"), str):
                    yield Fault(f"{path}[{index}].name", "missing; add it")


def _api_tokens(template: Mapping[str, Any]) -> Iterator[Fault]:
    """Projected tokens for the API server. Those for other services, such as the STS of a cloud, are allowed."""
    for path, kind, value in _walk(template):
        if not kind.endswith("ServiceAccountTokenProjection") or not isinstance(value, Mapping):
            continue
        audience = value.get("audience")
        # Without an audience, the token is for the API server. Its usual audience is its address in the cluster.
        if not audience or (isinstance(audience, str) and audience.startswith(API_SERVER_AUDIENCE)):
            wanted = "that of another service, such as sts.amazonaws.com"
            yield Fault(f"{path}.audience", expected(audience, wanted, "trainers get no token for the API server"))


def _meant(name: str, known: Mapping[str, str], *, owner: str, field: str) -> str:
    """The remedy for an unknown field: its place elsewhere in a pod, a similar name, or the release that was asked."""
    similar = difflib.get_close_matches(name, known, n=1, cutoff=SIMILAR)
    # A clear typing error comes before a place elsewhere in the pod, a vague likeness after it.
    if similar and difflib.SequenceMatcher(None, name, similar[0]).ratio() >= MISSPELT:
        return f"did you mean {similar[0]}?"
    is_template = owner == field
    if is_template and name in MANIFEST_FIELDS:
        return ONLY_TWO
    # Before other places: `name` and `namespace` occur elsewhere in a pod, but are not what the user meant.
    if owner.endswith(".metadata"):
        return "the Job controller names and places pods; expected only labels and annotations"
    if elsewhere := _places().get(name):
        return f"did you mean {join_path(field, elsewhere)}?"
    if similar:
        return f"did you mean {similar[0]}?"
    return ONLY_TWO if is_template else f"Kubernetes {_table()[0]} has no field of this name here; remove it"


@functools.cache
def _places() -> dict[str, str]:
    """Where each field name occurs first in a PodTemplateSpec, the least deep place, such as spec.containers[].env."""
    types = _table()[1]
    places: dict[str, str] = {}
    waiting, seen = [("", ROOT)], set()
    while waiting:
        path, kind = waiting.pop(0)
        seen.add(kind)
        for name, inner in types[kind].items():
            suffix = "[]" if inner.startswith("[]") else ""
            here = join_path(path, name)
            places.setdefault(name, here)
            # Each type once: its first place is the least deep one.
            if (model := inner.removeprefix("[]")) in types and model not in seen:
                waiting.append((here + suffix, model))
    return places


def _checked(template: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
    # The field's own path is added by whoever raises; suggestions are relative to the pod.
    from_cluster = bool(info.context and info.context.get(FROM_CLUSTER))
    unknown = [] if from_cluster else unknown_fields(template, field="pod")
    if found := [*unknown, *pod_faults(template)]:
        raise error_of(found)
    return template


PodTemplate = Annotated[
    dict[str, Any],
    AfterValidator(_checked),
    Expect("a mapping with metadata and spec, as a PodTemplateSpec"),
    WithJsonSchema(
        {
            "type": "object",
            "maxProperties": MAX_POD_KEYS,
            # A map instead of two fields, or the API server would drop the others before the rule can see them.
            "additionalProperties": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
            **rules(
                {
                    "rule": "self.all(key, key in ['metadata', 'spec'])",
                    "message": "expected only metadata and spec, as in a PodTemplateSpec",
                    # One key: to join all of them would exceed the API server's budget for a schema.
                    "messageExpression": "'expected only metadata and spec, as in a PodTemplateSpec; did you mean ' + "
                    "'pod.spec.' + self.filter(key, !(key in ['metadata', 'spec']))[0] + '?'",
                }
            ),
        }
    ),
]
"""A PodTemplateSpec. The API server checks its two fields, the types above the rest."""
