"""The longest work order that a valid chain can have, computed from the types, fits into an environment variable."""

from __future__ import annotations

import json
from typing import Any

import pytest

from distillchain_api.resource.size import COMPARED_BYTES, LARGE_FIELDS_BYTES
from distillchain_api.resource.teachers import MAX_TEACHERS
from distillchain_api.values import HTTP_ADDRESS, MAX_URI_CHARS
from distillchain_api.wire.evidence import ComparedStudent
from distillchain_api.wire.work_order import MAX_WORK_ORDER_BYTES, WorkOrder

SCHEMA = WorkOrder.model_json_schema(by_alias=True)
NUMBER_BYTES = 24
# Counted together by LARGE_FIELDS_RULE, or (config) bounded in its values only, because the API server cannot bound the
# names of its fields.
COUNTED = {"labels", "files", "targetModules", "classWeights", "evidence", "config"}
# The operator writes these: names of namespace, chain and stage, and addresses that the spec bounds.
OF_THE_OPERATOR = {
    "chain": 320,
    "stage": 64,
    "field": 64,
    "uri": 2 * MAX_URI_CHARS,
    "endpointUrl": 2000,
    "name": 64,
    "region": 6 * 256,
    "model": 2 * MAX_URI_CHARS,
}


LONGEST_LIST = {"furtherTeachers": MAX_TEACHERS - 1}


def longest(schema: dict[str, Any], name: str = "") -> int:
    """The most bytes that a value takes as JSON."""
    if "$ref" in schema:
        return longest(SCHEMA["$defs"][schema["$ref"].rsplit("/", 1)[-1]], name)
    if options := schema.get("anyOf") or schema.get("oneOf"):
        return max(longest(option, name) for option in options)
    if values := schema.get("enum") or ([schema["const"]] if "const" in schema else []):
        return max(len(json.dumps(value)) for value in values)
    match schema["type"]:
        case "object" if "properties" in schema:
            return 2 + sum(
                len(key) + 4 + longest(value, key) for key, value in schema["properties"].items() if key not in COUNTED
            )
        case "object":
            return pytest.fail(f"{name} has no bound")
        case "array":
            return 2 + schema.get("maxItems", LONGEST_LIST.get(name, 0)) * (1 + longest(schema["items"], name))
        case "string":
            return 2 + longest_text(schema, name)
        case "boolean" | "null":
            return 5
        case "integer":
            return len(str(schema.get("maximum", schema.get("exclusiveMaximum", 2**63))))
        case "number":
            return NUMBER_BYTES
    pytest.fail(f"{name}: {schema}")


def longest_text(schema: dict[str, Any], name: str) -> int:
    pattern = schema.get("pattern", "")
    if "maxLength" not in schema:
        return 64 if pattern == "^[0-9a-f]{64}$" else OF_THE_OPERATOR[name]
    # Two bytes for a quote or a backslash; a URI is bounded in bytes.
    if HTTP_ADDRESS in pattern or schema["maxLength"] == MAX_URI_CHARS:
        return 2 * schema["maxLength"]
    return schema["maxLength"] * (1 if pattern.startswith("^[a-z]") else 6)


def test_everything_beside_the_large_fields_fits_into_the_rest():
    assert longest(SCHEMA) + LARGE_FIELDS_BYTES <= MAX_WORK_ORDER_BYTES


def test_a_compared_student_is_no_longer_than_the_rule_says():
    student = ComparedStudent(name="n" * 45, digest="d" * 64, control="FromRoot", seed=2**31 - 1)
    assert len(student.to_json()) + 1 <= COMPARED_BYTES
