"""The CustomResourceDefinition, generated from the types: descriptions, defaults, ranges, CEL rules, printer columns.

`python -m distillchain_api.resource.crd` prints it; crds/ holds that output and `make check` compares.
"""

from __future__ import annotations

import sys
from typing import Any

import yaml

from distillchain_api import GROUP, KIND, PLURAL, VERSION
from distillchain_api.resource.spec import ChainSpec
from distillchain_api.resource.status import ChainStatus
from distillchain_api.resource.structural import structural_schema

PRINTER_COLUMNS = (
    ("Phase", "string", ".status.phase", "Pending, Running, Suspended, Succeeded or Failed"),
    ("Stage", "string", ".status.stage", "Committed stages out of all"),
    ("Metric", "string", ".status.metric", "spec.task.metric of the last committed student on validation"),
    ("Message", "string", ".status.message", "What it does, what it waits for, or why it failed"),
    ("Age", "date", ".metadata.creationTimestamp", ""),
)
NAME_RULE = {
    # The chain's name becomes a label of its Jobs, and a label holds 63 characters.
    "rule": "self.metadata.name.size() <= 63",
    "message": "metadata.name: expected 63 characters at most",
}
# kstatus treats a resource without a status as finished. Without this default, Flux and `helm --wait` would call a new
# chain ready if they read it before the operator does. No generation is -1.
UNSEEN_STATUS = {"observedGeneration": -1}
# The operator alone writes status. Otherwise metadata.managedFields would name each of its fields: a third of a chain.
ONE_OWNER = {"x-kubernetes-map-type": "atomic"}


def build_crd() -> dict[str, Any]:
    """The CRD as plain data. The same types give the same bytes."""
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
                # Not in the category `all`: `kubectl delete all --all` would delete the chains.
                "shortNames": ["dchain"],
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
            # Without defaults: the operator alone writes status, and a field that it left out must stay absent.
            "status": structural_schema(ChainStatus, with_defaults=False) | {"default": UNSEEN_STATUS, **ONE_OWNER},
        },
    }


def render_crd() -> str:
    """The CRD as YAML, with a note on how it is generated."""
    body = yaml.safe_dump(build_crd(), sort_keys=False, width=120, allow_unicode=True)
    return f"# Generated from api/distillchain_api by `make generate`; edit the types, not this file.\n{body}"


if __name__ == "__main__":
    sys.stdout.write(render_crd())
