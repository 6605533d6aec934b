"""PodTemplateSpecs of people: held to their shape, and a chain's laid over the operator's."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

MERGED_BY_NAME = ("containers", "initContainers")  # item by item, and each field by field
REPLACED_BY_KEY = {"env": "name", "volumes": "name", "imagePullSecrets": "name", "volumeMounts": "mountPath"}


class BadPodTemplate(ValueError):
    """A pod template that is no PodTemplateSpec, in a sentence with the field."""


def check_pod_template(template: Mapping[str, Any], field: str) -> None:
    """Holds the parts that are written into to their shape; the rest is for the API server to judge.

    Raises: BadPodTemplate.
    """
    metadata, spec = _mapping(template, "metadata", field), _mapping(template, "spec", field)
    _mapping(metadata, "labels", f"{field}.metadata")
    _mapping(spec, "securityContext", f"{field}.spec")
    for key in ("volumes", "imagePullSecrets"):
        _named_list(spec, key, f"{field}.spec")
    for key in MERGED_BY_NAME:
        for container in _named_list(spec, key, f"{field}.spec"):
            of_container = f"{field}.spec.{key}[{container['name']}]"
            _mapping(container, "securityContext", of_container)
            _named_list(container, "env", of_container)
            _list(container, "volumeMounts", of_container)


def overlay(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid over `under`, much as a strategic merge patch.

    Mappings field by field, containers by name; variables, volumes, pull secrets and mounts one by one; in all else,
    and where `over` says null, `over` wins.

    Both have passed `check_pod_template`.
    """
    made = copy.deepcopy(dict(under))
    for key, value in over.items():
        before = made.get(key)
        if isinstance(before, dict) and isinstance(value, Mapping):
            made[key] = overlay(before, value)
        elif isinstance(before, list) and isinstance(value, list) and key in MERGED_BY_NAME:
            made[key] = _merged(before, value)
        elif isinstance(before, list) and isinstance(value, list) and key in REPLACED_BY_KEY:
            made[key] = _replaced(before, value, REPLACED_BY_KEY[key])
        else:
            made[key] = copy.deepcopy(value)
    return made


def _merged(under: list[dict[str, Any]], over: list[dict[str, Any]]) -> list[dict[str, Any]]:
    known = {item["name"]: item for item in under}
    mine = [overlay(known.get(item["name"], {}), item) for item in over]
    return [*(item for item in under if item["name"] not in {item["name"] for item in over}), *mine]


def _replaced(under: list[Any], over: list[Any], key: str) -> list[Any]:
    stated = [item.get(key) for item in over if isinstance(item, dict)]
    kept = [item for item in under if not isinstance(item, dict) or item.get(key) not in stated]
    return [*kept, *copy.deepcopy(over)]


def _mapping(parent: Mapping[str, Any], key: str, field: str) -> dict[str, Any]:
    value = parent.get(key) or {}
    if not isinstance(value, dict):
        raise BadPodTemplate(f"{field}.{key}: expected a mapping, as in a PodTemplateSpec")
    return value


def _list(parent: Mapping[str, Any], key: str, field: str) -> list[Any]:
    value = parent.get(key) or []
    if not isinstance(value, list):
        raise BadPodTemplate(f"{field}.{key}: expected a list, as in a PodTemplateSpec")
    return value


def _named_list(parent: Mapping[str, Any], key: str, field: str) -> list[dict[str, Any]]:
    value = _list(parent, key, field)
    for index, item in enumerate(value):
        if not isinstance(item, dict) or not isinstance(item.get("name"), str):
            raise BadPodTemplate(f"{field}.{key}[{index}]: expected a mapping with a name")
    return value
