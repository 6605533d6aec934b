"""Termination messages and progress lines: what is written can be read, and always fits."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from distillchain_api.failures import EXIT_CODE, FAILURES, FATAL_EXIT_CODES, FailureClass
from distillchain_api.wire.answer import (
    MESSAGE_BYTES,
    TERMINATION_BYTES,
    Failed,
    Interrupted,
    Progress,
    fit,
    parse_answer,
    parse_progress,
)

DIGEST = "0" * 64


@given(st.text(max_size=6000))
@example('"' * 6000)
@example("\x00" * 6000)
@example("\N{PILE OF POO}" * 6000)
def test_a_failure_of_any_length_fits_the_kubelet_and_stays_readable(message: str):
    failed = Failed(stage="s" * 32, digest=DIGEST, failure_class=FailureClass.CRASHED, message=fit(message))
    text = failed.to_json()
    assert len(text.encode()) <= TERMINATION_BYTES
    assert parse_answer(text) == failed


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
