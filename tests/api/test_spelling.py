"""One place or word that can be written in several ways gives one digest, or is refused."""

from __future__ import annotations

import copy
import unicodedata
from collections.abc import Callable
from typing import Any

import pytest

from bad_chains import GOOD
from distillchain_api.faults import BadDocument
from distillchain_api.graph import build_plan
from distillchain_api.resource.spec import DistillationChain, parse_chain


def changed(change: Callable[[dict[str, Any]], object]) -> DistillationChain:
    document = copy.deepcopy(GOOD)
    change(document["spec"])
    return parse_chain(document)


def digests(chain: DistillationChain) -> list[str]:
    return [stage.digest for stage in build_plan(chain).stages]


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda spec: spec["task"]["dataset"].update(uri="s3://data/sst2/"), id="data"),
        pytest.param(lambda spec: spec["teacher"].update(model="hf://org/teacher@main/"), id="teacher"),
        pytest.param(lambda spec: spec["stages"][0]["student"].update(model="hf://org/mini/"), id="student"),
    ],
)
def test_a_slash_at_the_end_of_a_uri_changes_nothing(change: Callable[[dict[str, Any]], object]):
    assert changed(change) == parse_chain(GOOD)


def test_a_slash_at_the_end_of_the_store_changes_nothing():
    assert changed(lambda spec: spec["storage"].update(uri="s3://models/")).spec.storage.uri == "s3://models"
    slash = changed(lambda spec: spec["storage"].update(endpointUrl="http://s3:9000/")).spec.storage
    assert slash.endpoint_url == "http://s3:9000"


@pytest.mark.parametrize(
    "uri", ["s3://data//sst2", "s3://data/sst2//", "s3://data/./sst2", "s3://data/../sst2", "file:///", "file:///a/..", "file:////a"]
)  # fmt: skip
def test_other_spellings_of_a_place_are_refused(uri: str):
    with pytest.raises(BadDocument) as refused:
        changed(lambda spec: spec["task"]["dataset"].update(uri=uri))
    (fault,) = refused.value.faults
    assert fault.field == "spec.task.dataset.uri"
    assert "'//', '/./' and '/../'" in fault.problem


@pytest.mark.parametrize(
    "uri", ["s3://data/.hidden/a..b/...", "file:///a.b/..c/d.", "hf://org/name.with.dots@refs/pr/1"]
)
def test_dots_within_names_are_allowed(uri: str):
    assert changed(lambda spec: spec["task"]["dataset"].update(uri=uri)).spec.task.dataset.uri == uri


def labels(*names: str) -> Callable[[dict[str, Any]], object]:
    return lambda spec: spec["task"].update(labels=list(names))


DECOMPOSED, COMPOSED = (unicodedata.normalize(form, "fâché") for form in ("NFD", "NFC"))


def test_a_class_name_with_accents_is_the_same_however_they_are_written():
    assert DECOMPOSED != COMPOSED
    assert digests(changed(labels(DECOMPOSED, "calm"))) == digests(changed(labels(COMPOSED, "calm")))


def test_two_class_names_that_differ_only_in_how_accents_are_written_are_one():
    with pytest.raises(BadDocument, match=r"^spec\.task\.labels: got .*, expected every class name once$"):
        changed(labels(DECOMPOSED, COMPOSED))


@pytest.mark.parametrize("name", ["./train.tsv", "a/../train.tsv", "a//train.tsv", "/train.tsv", "a/"])
def test_other_spellings_of_a_file_are_refused(name: str):
    with pytest.raises(BadDocument) as refused:
        changed(lambda spec: spec["task"]["dataset"]["splits"].update(train=name))
    assert refused.value.faults[0].field == "spec.task.dataset.splits.train"


@pytest.mark.parametrize("text, is_valid", [("292y", False), ("999999h", True), ("9999999h", False), ("9h99m", True)])
def test_a_duration_has_at_most_the_digits_that_the_api_server_can_read(text: str, is_valid: bool):
    def change(spec: dict[str, Any]) -> None:
        spec["template"] = {"timeout": text}

    if is_valid:
        assert changed(change).spec.template.timeout == text
    else:
        with pytest.raises(BadDocument, match=r"^spec\.template\.timeout: "):
            changed(change)
