"""JSON that is nested more deeply than Python's json and copy can follow."""

from __future__ import annotations

import json
from typing import Any

import pytest

from chain_builders import a_document
from distillchain_api.deep_json import MAX_DEPTH, TOO_DEEP, depth_fault, loads
from distillchain_api.faults import BadDocument
from distillchain_api.resource.spec import parse_chain


def nested(levels: int, *, inner: str = "1") -> str:
    return '{"a":' * levels + inner + "}" * levels


def test_what_is_nested_too_deeply_is_replaced_and_the_rest_is_kept():
    deep = nested(9_000, inner='["}]{[\\"", {}]')
    document = loads(f'{{"before": [1, {{}}], "deep": {deep}, "after": "{{["}}')
    assert (document["before"], document["after"]) == ([1, {}], "{[")
    value = document["deep"]
    for _ in range(MAX_DEPTH - 1):
        value = value["a"]
    assert value == TOO_DEEP


@pytest.mark.parametrize("text", ['{"a": [1, {"b": null}], "c": "]}\\""}', "[]", "3", nested(MAX_DEPTH)])
def test_other_json_is_read_as_it_is(text: str):
    assert loads(text) == json.loads(text)


@pytest.mark.parametrize("text", ["", "{", "}" * 500, "<html>"])
def test_text_that_is_not_json_is_refused(text: str):
    with pytest.raises(ValueError, match="line 1"):
        loads(text)


@pytest.mark.parametrize("levels", [150, 200, 500, 900, 9_000])
def test_a_chain_that_is_nested_too_deeply_is_refused_with_the_field(levels: int):
    document: dict[str, Any] = a_document()
    document["spec"]["template"]["pod"] = {"spec": loads(nested(levels))}
    for from_cluster in (False, True):
        with pytest.raises(BadDocument) as refused:
            parse_chain(document, from_cluster=from_cluster)
        assert str(refused.value) == (
            "spec.template.pod.spec: nested more than 100 levels deep, expected at most that; remove the inner ones"
        )


def test_a_list_is_as_deep_as_a_mapping():
    assert depth_fault([[[1]]]) is None
    value: Any = 1
    for _ in range(2_000):
        value = [value]
    fault = depth_fault(value)
    assert fault is not None
    assert fault.field == "[0][0][0][0]"
