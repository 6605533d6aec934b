"""The fields of a PodTemplateSpec, read from the Kubernetes client: `python -m distillchain_operator.pod_fields`.

`make generate` writes the output to api/distillchain_api/resource/pod_fields.json, because the contract package may not
import the client. `distillchain validate` finds misspelt fields with it.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from kubernetes.client import models

ROOT = "V1PodTemplateSpec"
# The Job keeps only labels and annotations of the pod's metadata (jobs/stage_job.py); generated manifests often hold
# the third as null.
METADATA = {"annotations": "{}string", "creationTimestamp": "string", "labels": "{}string"}
# The client has one type for text and quantities, and one for "a number or text" and "anything".
QUANTITIES = {
    ("V1ResourceRequirements", "limits"): "{}quantity",
    ("V1ResourceRequirements", "requests"): "{}quantity",
    ("V1VolumeResourceRequirements", "limits"): "{}quantity",
    ("V1VolumeResourceRequirements", "requests"): "{}quantity",
    ("V1PodSpec", "overhead"): "{}quantity",
    ("V1EmptyDirVolumeSource", "size_limit"): "quantity",
    ("V1ResourceFieldSelector", "divisor"): "quantity",
}
SCALARS = {
    "str": "string",
    "int": "integer",
    "float": "number",
    "bool": "boolean",
    "datetime": "string",
    "object": "any",
}
_CONTAINER = re.compile(r"(list|dict)[\[(](?:str, )?(.+)[\])]")


def build_table() -> dict[str, Any]:
    """The release of Kubernetes, and every model below a PodTemplateSpec as field name -> type.

    A type is a scalar, `quantity`, `any` or the name of a model; `[]` before it is a list, `{}` a map from text.
    """
    types: dict[str, dict[str, str]] = {}
    waiting = [ROOT]
    while waiting:
        name = waiting.pop()
        if _short(name) in types:
            continue
        model: Any = getattr(models, name)
        if name == "V1ObjectMeta":
            types[_short(name)] = METADATA
            continue
        fields = {}
        for attribute, kind in model.openapi_types.items():
            fields[model.attribute_map[attribute]] = QUANTITIES.get((name, attribute)) or _type(kind)
            # Only models: `list` and `str` are words of a type too.
            waiting += [found for found in re.findall(r"\w+", kind) if hasattr(models, found)]
        types[_short(name)] = dict(sorted(fields.items()))
    # The client's major version is the minor version of Kubernetes.
    return {"kubernetes": f"1.{version('kubernetes').split('.')[0]}", "types": dict(sorted(types.items()))}


def _type(kind: str) -> str:
    found = _CONTAINER.fullmatch(kind)
    if found:
        return ("[]" if found[1] == "list" else "{}") + _type(found[2])
    return SCALARS.get(kind) or _short(kind)


def _short(name: str) -> str:
    """`V1PodSpec` as Kubernetes calls it: PodSpec."""
    return re.sub(r"^(Core)?V1", "", name)


def render(table: Mapping[str, Any]) -> str:
    """JSON with one model a line, so that a difference can be read."""
    lines = [f"  {json.dumps(name)}: {json.dumps(fields)}" for name, fields in table["types"].items()]
    return f'{{"kubernetes": "{table["kubernetes"]}", "types": {{\n' + ",\n".join(lines) + "\n}}\n"


if __name__ == "__main__":
    sys.stdout.write(render(build_table()))
