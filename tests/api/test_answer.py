"""Termination messages and progress lines: what is written can be read, and always fits."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from chain_builders import a_commit, a_plan
from distillchain_api.failures import EXIT_CODE, FAILURES, FATAL_EXIT_CODES, FailureClass
from distillchain_api.wire.answer import (
    MESSAGE_BYTES,
    TERMINATION_BYTES,
    Committed,
    Failed,
    Interrupted,
    Progress,
    fit,
    parse_answer,
    parse_progress,
)
from distillchain_api.wire.plain_text import on_one_line

DIGEST = "0" * 64


@given(st.text(max_size=6000))
@example('"' * 6000)
@example("\x00" * 6000)
@example("\N{PILE OF POO}" * 6000)
def test_a_failure_of_any_length_fits_the_kubelet_and_stays_readable(message: str):
    failed = Failed(stage="s" * 32, digest=DIGEST, failure_class=FailureClass.CRASHED, message=fit(message))
    text = failed.to_json()
    assert len(text.encode()) <= TERMINATION_BYTES
    assert parse_answer(text) == failed.model_copy(update={"message": on_one_line(failed.message)})


def test_a_text_of_a_trainer_is_on_one_line_and_commands_no_terminal():
    answer = parse_answer(
        Failed(
            stage="tiny",
            digest=DIGEST,
            failure_class=FailureClass.CRASHED,
            message="a\n  b\r\n\x1b[2Jc\u202ed caf\u00e9\u200d",
        ).to_json()
    )
    assert isinstance(answer, Failed)
    assert answer.message == "a b \\x1b[2Jc\\u202ed caf\u00e9\u200d"


def test_fields_of_a_later_release_are_ignored():
    failed = Failed(stage="tiny", digest=DIGEST, failure_class=FailureClass.CRASHED, message="m")
    assert parse_answer(failed.to_json()[:-1] + ', "energyJoules": {"gpu": 5}}') == failed
    progress = Progress(stage="tiny", phase="Train", step=1, of=10)
    assert parse_progress(progress.to_json()[:-1] + ', "energyJoules": 5}') == progress


def test_a_commit_that_was_cut_counts_if_only_warnings_are_missing():
    chain = a_plan(evidence={"controls": ["Direct"], "seeds": 2})
    for stage in chain.vertices:
        commit = a_commit(stage).model_copy(update={"warnings": ["the validation split is small"] * 2})
        text = commit.to_json()
        needed = text.index('"warnings":[') + len('"warnings":[')

        for end in range(len(text)):
            found = parse_answer(text[:end])
            assert (found is not None) == (end >= needed), text[:end]
            assert found is None or found.model_copy(update={"warnings": commit.warnings}) == commit


def test_a_failure_that_was_cut_keeps_its_class_and_the_start_of_its_sentence():
    failed = Failed(stage="tiny", digest=DIGEST, failure_class=FailureClass.DATA_INVALID, message="a long sentence")
    assert parse_answer(failed.to_json()[: -len('sentence"}')]) == failed.model_copy(update={"message": "a long "})


@pytest.mark.parametrize(
    "field, number", [("parameters", 0), ("parameters", 2**63), ("sizeBytes", 2**63), ("sizeBytes", -1)]
)
def test_a_commit_with_a_number_that_status_cannot_hold_is_no_answer(field: str, number: int):
    document = a_commit(a_plan().stages[0]).to_document()
    assert isinstance(parse_answer(json.dumps(document)), Committed)
    document["student"][field] = number
    assert parse_answer(json.dumps(document)) is None


@pytest.mark.parametrize("field, number", [("step", 10**23), ("of", 2**63), ("etaS", 1e300)])
def test_progress_with_a_number_that_status_cannot_hold_is_ignored(field: str, number: float):
    document = Progress(stage="tiny", phase="Train", step=1, of=10).to_document() | {field: number}
    assert parse_progress(json.dumps(document)) is None


def test_a_message_that_fits_is_left_alone():
    assert fit("short") == "short"
    assert fit("x" * (MESSAGE_BYTES + 1)) == "x" * (MESSAGE_BYTES - 3) + "..."


@pytest.mark.parametrize("text", ["", "Killed", "{}", '{"outcome":"Committed"}', '{"outcome":"Other"}'])
def test_other_words_are_not_an_answer(text: str):
    assert parse_answer(text) is None


def test_an_answer_is_told_by_its_outcome():
    interrupted = Interrupted(stage="tiny", digest=DIGEST, step=7, message="told to stop; goes on from step 7")
    assert parse_answer(interrupted.to_json()) == interrupted


@pytest.mark.parametrize("line", ["talk", "{broken", '{"kind":"other"}'])
def test_talk_is_not_progress(line: str):
    assert parse_progress(line) is None


def test_a_progress_line_reads_back():
    progress = Progress(stage="tiny", phase="Train", step=1, of=10, loss=0.5)
    assert parse_progress(progress.to_json()) == progress


def test_every_failure_class_stands_in_the_table_once():
    assert [failure.failure_class for failure in FAILURES] == list(FailureClass)


def test_fatal_codes_are_those_of_the_design():
    fatal = {code for code in EXIT_CODE.values() if 64 <= code <= 69}
    assert fatal == set(FATAL_EXIT_CODES)
    assert EXIT_CODE[FailureClass.INTERRUPTED] == 75
