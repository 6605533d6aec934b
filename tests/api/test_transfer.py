"""Unlabelled text in the spec: which stages use it, what it changes in their digests, and what is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from bad_chains import GOOD
from distillchain_api.faults import BadDocument
from distillchain_api.graph import build_plan
from distillchain_api.resource.spec import parse_chain
from distillchain_api.transfer import transfer_of

TRANSFER = {"uri": "s3://data/imdb", "files": ["sentences.txt"], "rows": 600_000}


def a_document(change: Callable[[dict[str, Any]], object] = lambda _: None, **transfer: Any) -> dict[str, Any]:
    document = copy.deepcopy(GOOD)
    document["spec"]["task"]["transfer"] = {**TRANSFER, **transfer}
    document["spec"]["teacher"]["fineTune"] = {"epochs": 1}
    change(document["spec"])
    return document


def digests(document: dict[str, Any]) -> list[str]:
    return [stage.digest for stage in build_plan(parse_chain(document)).stages]


def test_stages_with_a_teacher_use_it_and_stage_zero_does_not():
    document = a_document(lambda spec: spec["stages"][0].update(distillation={"alpha": 0}))

    orders = [stage.work_order for stage in build_plan(parse_chain(document)).stages]

    assert [transfer_of(order.task) is not None for order in orders] == [False, False, True]


def test_it_decides_the_digest_of_the_stages_that_use_it():
    def remove(spec: dict[str, Any]) -> None:
        del spec["task"]["transfer"]

    without, with_text, more = digests(a_document(remove)), digests(a_document()), digests(a_document(rows=5))

    assert with_text[0] == without[0] == more[0], "stage zero stays committed"
    assert not {*with_text[1:]} & {*without[1:], *more[1:]}


def test_text_that_no_stage_would_use_is_refused():
    with pytest.raises(BadDocument) as refused:
        parse_chain(a_document(lambda spec: spec.update(template={"distillation": {"alpha": 0}})))
    assert str(refused.value) == (
        "spec.template.distillation.alpha: got 0, expected above 0 in at least one stage with task.transfer; unlabelled "
        "text has only the teacher's answer to learn from: raise alpha or remove task.transfer"
    )


@pytest.mark.parametrize(
    "transfer, want",
    [
        pytest.param({"files": []}, "spec.task.transfer.files: got [], expected a list of 1 to 256 files or splits", id="no file"),
        pytest.param({"files": ["a.txt", "a.txt"]}, 'spec.task.transfer.files[1]: got "a.txt", expected every file once', id="a file twice"),
        pytest.param({"files": ["../a.txt"]}, "spec.task.transfer.files[0]: got \"../a.txt\", expected the path of a file below uri; without '//', './' and '../'", id="out of the folder"),
        pytest.param({"text": ["a", "a"]}, 'spec.task.transfer.text: got ["a", "a"], expected two different columns', id="a column twice"),
        pytest.param({"rows": 0}, "spec.task.transfer.rows: got 0, expected a whole number from 1 to 1000000000", id="no row"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused(transfer: dict[str, Any], want: str):
    with pytest.raises(BadDocument) as refused:
        parse_chain(a_document(**transfer))
    assert str(refused.value) == want


def test_a_text_file_has_no_pairs():
    with pytest.raises(BadDocument) as refused:
        parse_chain(a_document(lambda spec: spec["task"]["dataset"].update(text=["one", "other"])))
    assert str(refused.value) == (
        'spec.task.transfer.files[0]: got "sentences.txt", expected a file with columns for sentence pairs; a .txt file '
        "has one text on each line"
    )
