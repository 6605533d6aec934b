"""Labels of TokenClassification that the API server cannot check, because it would cost too much there."""

from __future__ import annotations

import pytest

from bad_chains import GOOD, tagging
from distillchain_api.faults import BadDocument
from distillchain_api.resource.spec import parse_chain


def fault_of(*labels: str) -> str:
    document = {**GOOD, "spec": {**GOOD["spec"], "task": dict(GOOD["spec"]["task"])}}
    tagging(*labels)(document["spec"])
    try:
        parse_chain(document)
    except BadDocument as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    "labels",
    [
        ["O", "B-person", "I-person"],
        ["B-creative-work", "I-creative-work", "O", "B-person"],
        ["O", "B-Ort", "I-Ort", "B-fâché"],
    ],
)
def test_tags_of_iob2_in_any_order_are_accepted(labels: list[str]):
    assert fault_of(*labels) == ""


@pytest.mark.parametrize(
    "labels, message",
    [
        (
            ["O", "I-person", "B-place"],
            'spec.task.labels: got "I-person", expected B-person beside it; in IOB2 every entity begins with B-; data in '
            "IOB1, where B- is rare, must be converted",
        ),
        (
            ["O", "B-"],
            'spec.task.labels: got "B-", expected O, B-X or I-X for a kind X of entity; for example B-person',
        ),
        (["O", "B-a", "B-a"], 'spec.task.labels: got ["O", "B-a", "B-a"], expected every tag once'),
        (["o", "B-a"], "expected the tag O among them"),
    ],
)
def test_other_tags_are_refused(labels: list[str], message: str):
    assert message in fault_of(*labels)
