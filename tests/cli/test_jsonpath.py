"""JSONPath templates give the text that kubectl gives, and say what is wrong with them."""

from __future__ import annotations

import json

import pytest

from cli.scene import NAME, Scene
from distillchain_cli.output.jsonpath import BadTemplate, parse_template

TEMPLATES = [
    "{.metadata.name}",
    "{.metadata['name']} and {$.kind}",
    "{@.metadata.name}{'\\n'}",
    "{.spec.stages[*].name}",
    '{range .spec.stages[*]}{.name}{"\\t"}{.training.epochs}{"\\n"}{end}done',
    '{range .spec.stages[*]}{.name}:{range .student.architecture.*}<{@}>{end}{"\\n"}{end}',
    "{.spec.stages[0].name} {.spec.stages[-1].name}",
    "{.spec.stages[0:1].name}|{.spec.stages[1:].name}|{.spec.stages[0,1].name}",
    "{.spec.nothing.at.all}",
    "{.metadata.labels.app\\.kubernetes\\.io/name}",
    '{.spec.stages[?(@.name=="tiny")].name}',
    '{.spec.stages[?(@.name!="tiny")].name}',
    "{.spec.stages[?(@.training)].name}",
    "{.spec.template.training.epochs}",
    "{..epochs}",
    "{.spec.task.labels}",
]


@pytest.mark.cluster
@pytest.mark.xdist_group("cli")
def test_templates_give_the_text_of_kubectl(scene: Scene):
    scene.cluster.kubectl("-n", scene.namespace, "label", "dchain", NAME, "app.kubernetes.io/name=relay")
    chain = scene.cluster.get("dchain", NAME, "-n", scene.namespace)

    def of_kubectl(template: str) -> str:
        return scene.cluster.kubectl("-n", scene.namespace, "get", "dchain", NAME, "-o", f"jsonpath={template}").stdout

    assert [parse_template(each).render(chain) for each in TEMPLATES] == [of_kubectl(each) for each in TEMPLATES]


def test_numbers_and_texts_are_compared_by_their_own_order():
    rows = {"rows": [{"n": 2, "t": "b"}, {"n": 10, "t": "a"}, {"n": True}, {}]}

    assert parse_template("{.rows[?(@.n>2)].n}").render(rows) == "10"
    assert parse_template("{.rows[?(@.n<=10)].n}").render(rows) == "2 10"
    assert parse_template('{.rows[?(@.t>="b")].n}').render(rows) == "2"


@pytest.mark.parametrize(
    "template, want",
    [
        (".metadata.name", "expected a path in braces, such as {.metadata.name}"),
        ("{.items[*}", "cannot read '[*' in the path {.items[*}"),
        ("{.a", "expected balanced braces and quotes in '{.a'"),
        ("{range .a[*]}{.b}", "expected {end} after {range}"),
        ("{.a}{end}", "got {end} without {range}"),
        ("{.a[?(@.b ~ 1)]}", 'cannot read the filter (@.b ~ 1); expected a form such as ?(@.phase=="Failed")'),
        ("{.a[?(@.b==x)]}", "cannot read the value x in a filter; quote it"),
    ],
)
def test_a_template_that_cannot_be_read_is_explained(template: str, want: str):
    with pytest.raises(BadTemplate) as caught:
        parse_template(template)

    assert str(caught.value) == want


def test_a_document_is_json_without_spaces():
    assert parse_template("{.a}").render({"a": {"b": [1, "é"]}}) == json.dumps(
        {"b": [1, "é"]}, ensure_ascii=False, separators=(",", ":")
    )
