"""`student.lora` in spec, digest and plan."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from bad_chains import GOOD
from distillchain_api.graph import build_plan
from distillchain_api.resource.spec import parse_chain
from distillchain_api.resource.student import Student
from distillchain_cli.local.plan_view import student_start


def digest(lora: dict[str, Any] | None) -> str:
    document = copy.deepcopy(GOOD)
    student = document["spec"]["stages"][0]["student"]
    if lora is not None:
        student["lora"] = lora
    return build_plan(parse_chain(document)).stages[0].digest


@pytest.mark.parametrize("other", [{"rank": 8}, {"alpha": 16}, {"dropout": 0.1}, {"targetModules": ["query"]}, None])
def test_every_field_of_an_adapter_is_part_of_the_digest(other: dict[str, Any] | None):
    assert digest(other) != digest({})


def test_defaults_and_the_order_of_names_change_no_digest():
    assert digest({"rank": 16, "alpha": 32.0, "dropout": 0}) == digest({})
    assert digest({"targetModules": ["value", "query"]}) == digest({"targetModules": ["query", "value"]})


@pytest.mark.parametrize(
    "start, want",
    [({"model": "hf://org/mini"}, "hf://org/mini"), ({"fromTeacher": {"layers": 4}}, "4 layers of the teacher")],
)
def test_the_plan_names_the_adapter_beside_the_start(start: dict[str, Any], want: str):
    assert student_start(Student.parse({**start, "lora": {"rank": 8}})) == f"{want} + LoRA of rank 8"
