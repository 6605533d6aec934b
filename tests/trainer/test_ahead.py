"""Downloads that begin before their result is needed."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from distillchain_trainer.errors import CheckpointInvalid
from distillchain_trainer.stage import prepare
from distillchain_trainer.stage.ahead import begin
from trainer.parts import an_order, run_here, save_bert

PATIENCE_S = 60.0


def test_the_wait_gives_the_result_or_raises_what_the_download_raised():
    def fail() -> None:
        raise CheckpointInvalid("spec.teacher.model: why")

    assert begin(lambda: 5, name="five")() == 5
    wait = begin(fail, name="fault")
    with pytest.raises(CheckpointInvalid, match="why"):
        wait()


@pytest.mark.models
def test_the_student_is_fetched_while_its_teacher_is(root: Path, monkeypatch: pytest.MonkeyPatch):
    begun = threading.Event()
    seen: list[str] = []

    def fetch(uri: str, *, field: str, **more: Any) -> Any:
        if field == "spec.teacher.model":
            assert begun.wait(PATIENCE_S), "the download of the student has not begun"
        else:
            begun.set()
        seen.append(field)
        return real(uri, field=field, **more)

    real = prepare.fetch_checkpoint
    monkeypatch.setattr(prepare, "fetch_checkpoint", fetch)
    save_bert(root / "start", labels=None, hidden_size=8)
    order = an_order(root, student={"model": f"file://{root}/start"})

    run_here(order, root)

    assert sorted(seen) == ["spec.stages[0].student.model", "spec.teacher.model"]


@pytest.mark.models
def test_the_fault_of_the_teacher_is_reported_before_that_of_the_student(root: Path):
    order = an_order(
        root, teacher={"model": f"file://{root}/no-teacher"}, student={"model": f"file://{root}/no-student"}
    )

    with pytest.raises(CheckpointInvalid, match="no-teacher does not exist"):
        run_here(order, root)
