"""The CRD generator: what it cannot express it refuses, and a tagged union holds on the real API server."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from cluster.controlplane import ControlPlane
from distillchain_api.base import Document
from distillchain_api.cel import cel, rules
from distillchain_api.resource.crd import build_crd
from distillchain_api.resource.spec import ChainSpec
from distillchain_api.resource.structural import UnsupportedSchema, structural_schema
from distillchain_api.yaml_scalars import read_scalar


class Rows(Document):
    """Where rows come from."""

    uri: str
    limit: int = 100


class Scale(Document):
    """A unit, and one that only some rows need."""

    unit: str
    digits: int = 2


class Measured(Rows):
    """Rows with a column of numbers, which has a rule of its own."""

    number: str
    kind: Literal["ratio", "interval"] | None = None
    scale: Scale | None = None
    model_config = {"json_schema_extra": rules(cel("self.number != self.uri", "expected another name than uri"))}


class Named(Rows):
    """Rows with a column of names."""

    kind: Literal["nominal"] | None = None
    names: str | None = None


class Counting(Document):
    """Toy task whose rows have columns of their own."""

    type: Literal["Counting"]
    rows: Measured


class Naming(Document):
    """Toy task with other columns, whose rows may be left out."""

    type: Literal["Naming"]
    rows: Named | None = None


Nested = Annotated[Counting | Naming, Field(discriminator="type")]


class Classify(Document):
    """Toy task with a list that the other lacks."""

    type: Literal["Classify"]
    rows: Rows
    labels: Annotated[list[str], Field(min_length=2)]
    threshold: float = 0.5
    seed: int = 7


class Regress(Document):
    """Toy task with a range."""

    type: Literal["Regress"]
    rows: Rows
    low: float
    high: float | None = None
    seed: int = 7
    model_config = {
        "json_schema_extra": rules(cel("!has(self.high) || self.low < self.high", "expected low below high"))
    }


Toy = Annotated[Classify | Regress, Field(discriminator="type")]


class Spec(Document):
    """A document with a tagged union, once required and once not."""

    task: Toy
    """What to do."""
    more: Toy | None = None
    nested: Nested | None = None


def schema_of(annotation: Any) -> dict[str, Any]:
    """The structural schema of a document with the one field `field`."""
    model = type("Toy", (Document,), {"__annotations__": {"field": annotation}})
    return structural_schema(model)["properties"]["field"]


def test_a_tagged_union_becomes_one_object_with_the_fields_of_all_members():
    task = structural_schema(Spec)["properties"]["task"]

    assert task["required"] == ["type", "rows"]
    assert task["description"] == "What to do."
    assert list(task["properties"]) == ["type", "rows", "labels", "threshold", "seed", "low", "high"]
    assert task["properties"]["type"]["enum"] == ["Classify", "Regress"]
    assert task["properties"]["rows"]["properties"]["limit"]["default"] == 100
    assert task["x-kubernetes-validations"] == [
        {
            "rule": "!has(self.labels) || self.type in ['Classify']",
            "message": "labels belongs to type Classify; remove it",
            "fieldPath": ".labels",
        },
        {"rule": "self.type != 'Classify' || has(self.labels)", "message": "type Classify needs labels; add it"},
        {
            "rule": "!has(self.threshold) || self.type in ['Classify']",
            "message": "threshold belongs to type Classify; remove it",
            "fieldPath": ".threshold",
        },
        {
            "rule": "!has(self.low) || self.type in ['Regress']",
            "message": "low belongs to type Regress; remove it",
            "fieldPath": ".low",
        },
        {"rule": "self.type != 'Regress' || has(self.low)", "message": "type Regress needs low; add it"},
        {
            "rule": "!has(self.high) || self.type in ['Regress']",
            "message": "high belongs to type Regress; remove it",
            "fieldPath": ".high",
        },
        {
            "rule": "self.type != 'Regress' || (!has(self.high) || self.low < self.high)",
            "message": "expected low below high",
        },
    ]


class Sorting(Document):
    """Toy task with a metric of its own."""

    type: Literal["Sorting"]
    metric: Literal["swaps"] = "swaps"
    """Fewer are better."""
    rows: str
    """Where rows are."""


class Guessing(Document):
    """Toy task with another metric."""

    type: Literal["Guessing"]
    metric: Literal["hits"] = "hits"
    """More are better."""
    rows: str
    """Where rows are."""


def test_a_field_that_means_something_else_for_each_tag_says_so():
    task = schema_of(Annotated[Sorting | Guessing, Field(discriminator="type")])

    assert task["properties"]["metric"]["description"] == (
        "Guessing: More are better. Default: hits. Sorting: Fewer are better. Default: swaps."
    )
    assert task["properties"]["rows"]["description"] == "Where rows are."


def test_a_default_stays_only_where_every_member_has_the_field():
    """The API server would fill it in for the other tags, and then refuse them for it."""
    task = structural_schema(Spec)["properties"]["task"]
    assert task["properties"]["seed"]["default"] == 7
    assert "default" not in task["properties"]["threshold"]
    assert task["properties"]["threshold"]["description"] == "Default: 0.5."


def test_members_that_disagree_about_a_field_are_refused_with_its_name():
    class Other(Document):
        type: Literal["Other"]
        rows: int

    with pytest.raises(UnsupportedSchema, match=r"\.field\.rows: Other gives this field another schema"):
        schema_of(Annotated[Classify | Other, Field(discriminator="type")])


def test_objects_with_other_fields_for_each_tag_are_merged():
    nested = structural_schema(Spec)["properties"]["nested"]

    rows = nested["properties"]["rows"]
    assert nested["required"] == ["type"]
    assert rows["required"] == ["uri"]
    assert list(rows["properties"]) == ["uri", "limit", "number", "kind", "scale", "names"]
    assert rows["properties"]["limit"]["default"] == 100
    assert rows["properties"]["kind"]["enum"] == ["ratio", "interval", "nominal"]
    assert "x-kubernetes-validations" not in rows
    assert {
        "rule": "self.type != 'Counting' || has(self.rows)",
        "message": "type Counting needs rows; add it",
    } in nested["x-kubernetes-validations"]


@pytest.mark.parametrize(
    "annotation, want",
    [
        pytest.param(int | str, "a union of 2 types without a discriminator", id="two types"),
        pytest.param(Rows | Regress, "a union of 2 types without a discriminator", id="two models"),
        pytest.param(Any, "no type", id="anything"),
        pytest.param(Literal[1, "one"], "no type", id="values of two types"),
        pytest.param(dict[str, Any], "an object without known fields", id="a map of anything"),
        pytest.param(dict[str, int | str], "a union of 2 types", id="in a map"),
        pytest.param(list[int | str], "a union of 2 types", id="in a list"),
        pytest.param(list[Any], "no type", id="a list of anything"),
        pytest.param(tuple[int, str], "the JSON schema keyword prefixItems", id="a tuple"),
        pytest.param(set[int], "the JSON schema keyword uniqueItems", id="a set"),
    ],
)
def test_what_the_api_server_cannot_express_is_refused_with_its_path(annotation: Any, want: str):
    with pytest.raises(UnsupportedSchema) as refused:
        schema_of(annotation)
    assert str(refused.value).startswith("Toy.field")
    assert want in str(refused.value)


@pytest.mark.parametrize(
    "annotation", [int, str | None, list[str], dict[str, str], Rows, Toy | None, Literal["a", "b"]]
)
def test_what_it_can_express_has_a_type(annotation: Any):
    assert schema_of(annotation)["type"] in ("integer", "string", "array", "object")


@pytest.fixture(scope="module")
def toys(control_plane: ControlPlane) -> ControlPlane:
    crd = build_crd()
    crd["metadata"]["name"] = "toys.toys.example"
    names = {"kind": "Toy", "listKind": "ToyList", "plural": "toys", "singular": "toy"}
    crd["spec"] |= {"group": "toys.example", "names": names}
    (version,) = crd["spec"]["versions"]
    del version["additionalPrinterColumns"]
    version["schema"]["openAPIV3Schema"]["properties"] |= {"spec": structural_schema(Spec)}
    control_plane.kubectl("apply", "--server-side", "-f", "-", input=json.dumps(crd))
    control_plane.wait_until_served("toys")
    return control_plane


@pytest.mark.cluster
@pytest.mark.parametrize(
    "task, want",
    [
        pytest.param({"type": "Classify", "labels": ["a", "b"]}, "", id="one tag"),
        pytest.param({"type": "Regress", "low": 0}, "", id="the other tag"),
        pytest.param({"type": "Classify"}, "type Classify needs labels; add it", id="a field is missing"),
        pytest.param(
            {"type": "Regress", "low": 0, "labels": ["a", "b"]},
            "spec.task.labels: Invalid value: labels belongs to type Classify; remove it",
            id="a field of the other tag",
        ),
        pytest.param({"type": "Regress", "low": 1, "high": 0}, "expected low below high", id="a member's own rule"),
        pytest.param({"type": "Rank"}, "spec.task.type: Unsupported value", id="an unknown tag"),
    ],
)
def test_the_api_server_holds_a_task_to_its_type(toys: ControlPlane, namespace: str, task: dict[str, Any], want: str):
    document = {
        "apiVersion": "toys.example/v1alpha1",
        "kind": "Toy",
        "metadata": {"name": "toy"},
        "spec": {"task": {"rows": {"uri": "s3://rows"}, **task}},
    }
    done = toys.kubectl("apply", "-n", namespace, "-f", "-", input=json.dumps(document), check=False)
    assert (done.returncode == 0) == (not want), done.stderr
    assert want in done.stderr.replace('"object": ', "").replace('"array": ', "")
    if not want:
        spec = toys.get("toy/toy", "-n", namespace)["spec"]
        assert spec["task"] == {"rows": {"limit": 100, "uri": "s3://rows"}, "seed": 7, **task}


def test_an_object_whose_default_differs_from_its_fields_defaults_is_refused():
    """The API server fills in the fields' defaults: the resource and its types would read differently."""

    class Inner(Document):
        epochs: int = 3

    class Outer(Document):
        same: Inner = Inner()
        other: Inner = Inner(epochs=5)

    with pytest.raises(UnsupportedSchema, match=r"other\.epochs: the default of Outer\.other is 5, its own is 3"):
        structural_schema(Outer)


@pytest.mark.cluster
@pytest.mark.parametrize(
    "task, want",
    [
        pytest.param({"type": "Counting", "rows": {"uri": "s3://a", "number": "n"}}, "", id="one tag"),
        pytest.param({"type": "Naming", "rows": {"uri": "s3://a", "names": "n"}}, "", id="the other tag"),
        pytest.param({"type": "Naming"}, "", id="the object is left out"),
        pytest.param({"type": "Counting"}, "type Counting needs rows; add it", id="the object is missing"),
        pytest.param(
            {"type": "Counting", "rows": {"uri": "s3://a"}},
            "type Counting needs rows.number; add it",
            id="a field of the object is missing",
        ),
        pytest.param(
            {"type": "Naming", "rows": {"uri": "s3://a", "scale": {"unit": "m"}}},
            "spec.nested.rows.scale: Invalid value: rows.scale belongs to type Counting; remove it",
            id="a field of the other tag's object",
        ),
        pytest.param(
            {"type": "Naming", "rows": {"uri": "s3://a", "kind": "ratio"}},
            "spec.nested.rows.kind: Invalid value: rows.kind: type Naming expects nominal",
            id="a choice of the other tag",
        ),
        pytest.param(
            {"type": "Counting", "rows": {"uri": "s3://a", "number": "s3://a"}},
            "expected another name than uri",
            id="the object's own rule",
        ),
        pytest.param(
            {"type": "Naming", "rows": {"uri": "s3://a", "number": "s3://a"}},
            "rows.number belongs to type Counting",
            id="the own rule of another tag",
        ),
    ],
)
def test_the_api_server_holds_an_inner_object_to_the_type(
    toys: ControlPlane, namespace: str, task: dict[str, Any], want: str
):
    document = {
        "apiVersion": "toys.example/v1alpha1",
        "kind": "Toy",
        "metadata": {"name": "toy"},
        "spec": {"task": {"rows": {"uri": "s3://rows"}, "type": "Regress", "low": 0}, "nested": task},
    }
    done = toys.kubectl("apply", "-n", namespace, "-f", "-", input=json.dumps(document), check=False)
    assert (done.returncode == 0) == (not want), done.stderr
    assert want in done.stderr.replace('"object": ', "").replace('"array": ', "").replace('"string": ', "")


def test_chains_are_not_in_the_category_all():
    """`kubectl delete all --all` would delete them."""
    assert "categories" not in build_crd()["spec"]["names"]


def test_no_name_of_a_field_needs_quotes_in_yaml():
    """kubectl reads the key `on` as true, and the API server then knows no such field."""

    def names(schema: dict[str, Any]) -> set[str]:
        found = set(schema.get("properties", {}))
        for child in [*schema.get("properties", {}).values(), *([schema["items"]] if "items" in schema else [])]:
            found |= names(child)
        return found

    found = names(structural_schema(ChainSpec))
    assert len(found) > 50
    assert [name for name in sorted(found) if read_scalar(name) != name] == []
