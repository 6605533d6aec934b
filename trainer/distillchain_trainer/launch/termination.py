"""The termination message: the stage's answer in one file of at most 4,096 bytes.

A stage that is committed answers at once, before its export and report. What ends the trainer later does not change
that answer, only the exit code; the next attempt makes what is missing.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from pathlib import Path
from typing import Any

from distillchain_api.wire.answer import TERMINATION_BYTES, Committed, Failed, Interrupted, fit, parse_answer
from distillchain_api.wire.evidence import EvidenceSummary
from distillchain_api.wire.work_order import TERMINATION_PATH_ENV

log = logging.getLogger(__name__)

DEFAULT_TERMINATION_PATH = "/dev/termination-log"
WARNING_BYTES = 300


def clear_answer() -> None:
    """Removes the answer of an earlier trainer from the file."""
    with contextlib.suppress(OSError):  # mostly because there is none
        os.truncate(_path(), 0)


def write_last_answer(answer: Committed | Failed | Interrupted) -> None:
    """Writes the answer of a trainer that ends, unless it has answered that the stage is committed."""
    if isinstance(answer, Committed) or not _is_committed(answer.digest):
        write_answer(answer)
        return
    why = answer.message if isinstance(answer, Failed) else "interrupted"
    log.warning("the stage is committed; the next attempt makes its export or report", extra={"why": why})


def _is_committed(digest: str) -> bool:
    """Whether this trainer, or its rank 0, has written that the stage is committed."""
    try:
        written = parse_answer(Path(_path()).read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return False
    return isinstance(written, Committed) and written.digest == digest


def _path() -> str:
    return os.environ.get(TERMINATION_PATH_ENV) or DEFAULT_TERMINATION_PATH


def write_answer(answer: Committed | Failed | Interrupted) -> None:
    """Writes in place and in one write: the kubelet mounts this very file, so nothing can be renamed over it."""
    path = _path()
    # Outside a pod there is no such file, and an ordinary user cannot create it.
    if path == DEFAULT_TERMINATION_PATH and not Path(path).exists():
        log.info("answer: %s", json.dumps(answer.to_document(), ensure_ascii=False))
        return
    content = encode_answer(answer)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        # Unbuffered, so that it is one write: a pod may be killed at any moment.
        with os.fdopen(descriptor, "wb", buffering=0) as file:
            file.write(content)
    except OSError:
        # Not raised: the exit code still tells how the stage ended.
        log.exception("the termination message could not be written; it is: %s", answer.to_json())


def encode_answer(answer: Committed | Failed | Interrupted) -> bytes:
    """The answer as JSON that the kubelet does not cut; of many warnings the first, and how many there are."""
    if isinstance(answer, Committed) and _size(answer) > TERMINATION_BYTES:
        # First what loses nothing: in a store with a long URI, the files of exports repeat it.
        answer = answer.with_short_uris()
    if isinstance(answer, Committed) and answer.warnings:
        answer = _with_fewer_warnings(answer)
    if isinstance(answer, Committed) and _size(answer) > TERMINATION_BYTES:
        answer = _without_sentences(answer)  # a store with a very long URI
    if isinstance(answer, Committed) and answer.evidence is not None:
        answer = _with_fewer_comparisons(answer, answer.evidence)
    # A message may quote half of a surrogate pair from a user's file, which UTF-8 cannot express.
    return answer.to_json().encode(errors="replace")


def _with_fewer_warnings(answer: Committed) -> Committed:
    warnings = [fit(sentence, WARNING_BYTES) for sentence in answer.warnings]
    for kept in range(len(warnings), -1, -1):
        left = len(warnings) - kept
        more = [f"{left} more warnings: see manifest.json of the stage, or the report"] if left else []
        smaller = answer.model_copy(update={"warnings": [*warnings[:kept], *more]})
        if _size(smaller) <= TERMINATION_BYTES:
            return smaller
    return answer.model_copy(update={"warnings": []})


def _without_sentences(answer: Committed) -> Committed:
    """With short sentences, which manifest and log keep; without the teachers where even that is too long."""
    teacher = answer.teacher.model_copy(update={"doubt": None}) if answer.teacher else None
    student = answer.student.model_copy(update={"doubt": answer.student.doubt and fit(answer.student.doubt, 100)})
    failure = answer.export_failure
    if failure is not None:
        failure = failure.model_copy(update={"message": fit(failure.message, WARNING_BYTES)})
    shorter = answer.model_copy(update={"student": student, "teacher": teacher, "export_failure": failure})
    without_teachers: list[dict[str, Any]] = [{}, {"further_teachers": []}, {"further_teachers": [], "teacher": None}]
    candidates = [shorter.model_copy(update=update) for update in without_teachers]
    return next((each for each in candidates if _size(each) <= TERMINATION_BYTES), candidates[-1])


def _with_fewer_comparisons(answer: Committed, evidence: EvidenceSummary) -> Committed:
    """Without the earliest stages of a verdict, as far as it is too long; its document has all."""
    evidence = evidence.model_copy(update={"missing": [fit(sentence, WARNING_BYTES) for sentence in evidence.missing]})
    while _size(shorter := answer.model_copy(update={"evidence": evidence})) > TERMINATION_BYTES:
        if evidence.others:
            evidence = evidence.model_copy(update={"others": evidence.others[1:]})
        elif evidence.missing:
            evidence = evidence.model_copy(update={"missing": evidence.missing[:-1]})
        else:
            break
    return shorter


def _size(answer: Committed) -> int:
    return len(answer.to_json().encode(errors="replace"))
