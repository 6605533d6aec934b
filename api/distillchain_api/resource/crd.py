"""The CustomResourceDefinition, generated from the types: descriptions, defaults, ranges, CEL rules, printer columns.

`python -m distillchain_api.resource.crd` prints it; crds/ holds that output and `make check` compares.
"""

from __future__ import annotations

import sys
from typing import Any

import yaml

from distillchain_api import GROUP, KIND, PLURAL, VERSION
from distillchain_api.base import Document
from distillchain_api.resource.spec import ChainSpec
from distillchain_api.resource.status import ChainStatus

PRINTER_COLUMNS = (
    ("Phase", "string", ".status.phase", "Pending, Running, Suspended, Succeeded or Failed"),
    ("Stage", "string", ".status.stage", "Committed stages of all"),
    ("Metric", "string", ".status.metric", "spec.task.metric of the last committed student on validation"),
    ("Message", "string", ".status.message", "What it does, waits for, or failed of"),
    ("Age", "date", ".metadata.creationTimestamp", ""),
)
NAME_RULE = {
    # The chain's name becomes a label of its Jobs, and a label holds 63 characters.
    "rule": "self.metadata.name.size() <= 63",
    "message": "metadata.name: expected 63 characters at most",
}
# kstatus takes a resource that has no status for a finished one: Flux and `helm --wait` would look once, in the moment
# before the operator does, and call a new chain ready. No generation is -1.
UNSEEN_STATUS = {"observedGeneration": -1}

_KEPT = (
    "description",
    "format",
    "pattern",
    "minimum",
    "maximum",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "enum",
    "default",
    "required",
)


def build_crd() -> dict[str, Any]:
    """The CRD as plain data. Same types, same bytes."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{PLURAL}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": KIND,
                "listKind": f"{KIND}List",
                "plural": PLURAL,
                "singular": KIND.lower(),
                "shortNames": ["dchain"],
                "categories": ["all"],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": [_column(*column) for column in PRINTER_COLUMNS],
                    "schema": {"openAPIV3Schema": _root_schema()},
                }
            ],
        },
    }


def _column(name: str, kind: str, path: str, description: str) -> dict[str, Any]:
    column = {"name": name, "type": kind, "jsonPath": path}
    return {**column, "description": description} if description else column


def _root_schema() -> dict[str, Any]:
    return {
        "type": "object",
        "description": "A relay of students: teacher -> stages[0] -> stages[1] -> ..., one GPU Job at a time.",
        "required": ["spec"],
        "x-kubernetes-validations": [NAME_RULE],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": structural_schema(ChainSpec),
            "status": structural_schema(ChainStatus, with_defaults=False) | {"default": UNSEEN_STATUS},
        },
    }


def structural_schema(model: type[Document], *, with_defaults: bool = True) -> dict[str, Any]:
    """The OpenAPI schema of a document in the structural form the API server asks for: no $ref, no anyOf, no null."""
    schema = model.model_json_schema(by_alias=True)
    return _structural(schema, schema.get("$defs", {}), with_defaults=with_defaults)


def _structural(schema: dict[str, Any], defs: dict[str, Any], *, with_defaults: bool) -> dict[str, Any]:
    schema = _resolve(schema, defs)
    out: dict[str, Any] = {"type": schema["type"]} if "type" in schema else {"type": "string"}
    for key in _KEPT:
        if key in schema:
            out[key] = schema[key]
    if "const" in schema:
        out["enum"] = [schema["const"]]
    # The API server knows exclusive bounds as a flag beside the bound, as OpenAPI 3.0 has them.
    for bound, flag in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        if flag in schema:
            out[bound], out[flag] = schema[flag], True
    out |= {key: value for key, value in schema.items() if key.startswith("x-kubernetes-")}
    if not with_defaults or out.get("default", ...) is None:
        out.pop("default", None)
    if "description" in out:
        out["description"] = " ".join(out["description"].split())
    if "properties" in schema:
        out["properties"] = {
            name: _structural(child, defs, with_defaults=with_defaults) for name, child in schema["properties"].items()
        }
        # The children carry the defaults; an empty object is enough for the API server to reach them.
        if "default" in out:
            del out["default"]
            if any("default" in child for child in out["properties"].values()):
                out["default"] = {}
    if "items" in schema:
        out["items"] = _structural(schema["items"], defs, with_defaults=with_defaults)
    if isinstance(extra := schema.get("additionalProperties"), dict):
        out["additionalProperties"] = _structural(extra, defs, with_defaults=with_defaults)
    return out


def _resolve(schema: dict[str, Any], defs: dict[str, Any]) -> dict[str, Any]:
    """Follows $ref and `X | None`; what stands beside them (description, default) wins over what they point to."""
    beside = {key: value for key, value in schema.items() if key not in ("$ref", "anyOf", "allOf")}
    if "$ref" in schema:
        return {**_resolve(defs[schema["$ref"].rsplit("/", 1)[-1]], defs), **beside}
    if "anyOf" in schema:
        options = [option for option in schema["anyOf"] if option.get("type") != "null"]
        assert len(options) == 1, f"a union the API server cannot express: {schema}"
        return {**_resolve(options[0], defs), **beside}
    return beside


def render_crd() -> str:
    """The CRD as YAML with a note of where it comes from."""
    body = yaml.safe_dump(build_crd(), sort_keys=False, width=120, allow_unicode=True)
    return f"# Generated from api/distillchain_api by `make generate`; edit the types, not this file.\n{body}"


if __name__ == "__main__":
    sys.stdout.write(render_crd())
