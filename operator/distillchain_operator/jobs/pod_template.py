"""How a chain's PodTemplateSpec is merged over the operator's."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

MERGED_BY_NAME = ("containers", "initContainers")  # item by item, and each field by field
REPLACED_BY_KEY = {"env": "name", "volumes": "name", "imagePullSecrets": "name", "volumeMounts": "mountPath"}


def overlay(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` merged over `under`, similar to a strategic merge patch.

    Mappings are merged field by field, containers by name; variables, volumes, pull secrets and mounts are replaced one
    by one. For everything else, and where `over` says null, `over` takes precedence.

    Both have the types of a PodTemplateSpec (distillchain_api.resource.pod).
    """
    # A deep copy: stage_job.py writes the trainer into the result, and the operator's template serves every chain.
    merged = copy.deepcopy(dict(under))
    for key, value in over.items():
        before = merged.get(key)
        if isinstance(before, dict) and isinstance(value, Mapping):
            merged[key] = overlay(before, value)
        elif isinstance(before, list) and isinstance(value, list) and key in MERGED_BY_NAME:
            merged[key] = _merged(before, value)
        elif isinstance(before, list) and isinstance(value, list) and key in REPLACED_BY_KEY:
            merged[key] = _replaced(before, value, REPLACED_BY_KEY[key])
        else:
            merged[key] = copy.deepcopy(value)
    return merged


def _merged(under: list[dict[str, Any]], over: list[dict[str, Any]]) -> list[dict[str, Any]]:
    known = {item["name"]: item for item in under}
    stated = {item["name"] for item in over}
    mine = [overlay(known.get(item["name"], {}), item) for item in over]
    return [*(item for item in under if item["name"] not in stated), *mine]


def _replaced(under: list[dict[str, Any]], over: list[dict[str, Any]], key: str) -> list[dict[str, Any]]:
    stated = {item.get(key) for item in over}
    return [*(item for item in under if item.get(key) not in stated), *copy.deepcopy(over)]
