"""The teacher's pass with a stand-in whose outputs tell which text it read: sizes, the store, stops and memory."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bad_chains import GOOD
from distillchain_api.resource.spec import parse_chain
from distillchain_api.resource.training import Training
from distillchain_store.folder import FileStore
from distillchain_trainer.data.split import key_of
from distillchain_trainer.engine.encoding.encoded import Encoded
from distillchain_trainer.engine.passes.teacher_outputs import TeacherOutputs, TeacherPass, outputs_digest
from distillchain_trainer.engine.training.training_rows import TrainingRows
from distillchain_trainer.errors import StopRequested

pytestmark = pytest.mark.models


class Teacher(torch.nn.Module):
    """Its logits are the first token id, plus the class."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.arange(classes, dtype=torch.float32))
        self.rows = 0

    def forward(self, input_ids: Any, attention_mask: Any) -> Any:
        self.rows += len(input_ids)
        return SimpleNamespace(logits=input_ids[:, :1].float() + self.weight)


def ask(tmp_path: Path, texts: list[int], teacher: Teacher, **more: Any) -> TeacherOutputs:
    folder = tmp_path / "work"
    folder.mkdir(exist_ok=True)
    settings: dict[str, Any] = {
        "columns": None, "save_interval_s": 3600.0, "stop": lambda: False, "on_batch": lambda *_: None, **more,
    }  # fmt: skip
    return TeacherPass(
        store=FileStore(f"file://{tmp_path}/store"),
        digest="d" * 64,
        model=teacher,
        outputs_of=lambda answer, _: answer.logits,
        encoded=Encoded.of([np.array([text, 1], dtype=np.int32) for text in texts], pad_id=0),
        keys=[key_of((str(text),)) for text in texts],
        training=Training(),
        check=lambda _: None,
        folder=folder,
        **settings,
    ).run()


def of_rows(found: TeacherOutputs, rows: Sequence[int]) -> Tensor:
    """The outputs that training compares with, for some rows."""
    encoded = Encoded.of([np.ones(1, dtype=np.int32)] * len(found.place), pad_id=0)
    training = TrainingRows.of(encoded, torch.zeros(len(encoded)), found)
    return training.batch(torch.tensor(rows), width=1)[1]["teacher"]


@pytest.mark.parametrize("rows", [1, 7, 64, 65, 1000])
def test_every_row_gets_the_outputs_of_its_own_text(tmp_path: Path, rows: int):
    texts, teacher = [5 + row % 37 for row in range(rows)], Teacher(3)

    found = ask(tmp_path, texts, teacher)

    assert of_rows(found, range(rows)).tolist() == [[text, text + 1, text + 2] for text in texts]
    assert teacher.rows == len(set(texts)), "repeated texts are computed once"


def test_only_what_the_store_lacks_is_computed(tmp_path: Path):
    ask(tmp_path, [5, 6, 7], Teacher(3))

    more = ask(tmp_path, [7, 9, 5, 8], teacher := Teacher(3))
    again = ask(tmp_path, [9, 8, 6], fresh := Teacher(3))

    assert (teacher.rows, more.reused) == (2, False)
    assert (fresh.rows, again.reused) == (0, True)
    assert of_rows(more, [0, 1, 2, 3])[:, 0].tolist() == [7, 9, 5, 8]
    assert of_rows(again, [0, 1, 2])[:, 0].tolist() == [9, 8, 6]


def test_the_set_of_texts_is_no_part_of_the_digest():
    """A subset or superset of the rows finds what was computed before."""
    task = parse_chain(GOOD).spec.task
    other = task.model_copy(update={"dataset": task.dataset.model_copy(update={"uri": "s3://other/rows"})})

    assert outputs_digest("t", task, Training()) == outputs_digest("t", other, Training())
    assert outputs_digest("t", task, Training()) != outputs_digest("t", task, Training(tf32=True))
    assert outputs_digest("t", task, Training()) != outputs_digest("u", task, Training())


def test_columns_are_put_in_the_order_of_the_task(tmp_path: Path):
    found = ask(tmp_path, [5, 6], Teacher(3), columns=(2, 0, 1))

    assert of_rows(found, [1, 0]).tolist() == [[8, 6, 7], [7, 5, 6]]


def test_a_stopped_pass_keeps_what_it_computed(tmp_path: Path):
    texts, first, second = list(range(5, 205)), Teacher(3), Teacher(3)
    looks = iter([False, True, True])
    with pytest.raises(StopRequested):
        ask(tmp_path, texts, first, stop=lambda: next(looks))

    found = ask(tmp_path, texts, second)

    assert first.rows + second.rows == len(texts)
    assert second.rows > 0
    assert of_rows(found, range(200))[:, 0].tolist() == texts


def test_a_stop_ends_the_reading_of_stored_parts(tmp_path: Path):
    ask(tmp_path, list(range(5, 205)), Teacher(3), save_interval_s=0.0)

    with pytest.raises(StopRequested):
        ask(tmp_path, [5, 6], Teacher(3), stop=lambda: True)


def test_outputs_of_many_classes_are_in_a_file_and_not_in_memory(tmp_path: Path):
    """1,000 classes took 5 KB a row for 4 KB of logits."""
    rows, classes = 2_000, 1_000
    texts, teacher = list(range(5, 5 + rows)), Teacher(classes)
    tracemalloc.start()

    found = ask(tmp_path, texts, teacher, save_interval_s=0.0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    size = rows * classes * 4
    assert found.values.nbytes == size
    assert peak < 0.4 * size, f"{peak / size:.2f} times the logits"
