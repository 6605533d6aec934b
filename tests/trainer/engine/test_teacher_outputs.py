"""The teacher's pass over the training rows: what it computes, keeps in the store and reuses."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distillchain_store.folder import FileStore
from distillchain_trainer.data.split import Split, key_of
from distillchain_trainer.engine.encoding.encoded import Encoded
from distillchain_trainer.engine.encoding.encoding import Encoder
from distillchain_trainer.engine.passes.teacher_outputs import TeacherOutputs, TeacherPass
from distillchain_trainer.errors import CheckpointInvalid
from distillchain_trainer.stage.measure import numbers_check
from distillchain_trainer.stage_warnings import StageWarnings
from distillchain_trainer.tasks.sequences.heads import SequenceModel
from trainer.checkpoint_parts import answers, fetch, load_teacher
from trainer.parts import an_order, save_bert, sentences

pytestmark = pytest.mark.models


def a_split(texts: list[str]) -> Split:
    rows = [(text,) for text in texts]
    return Split("train", rows, [0] * len(rows), [key_of(row) for row in rows])


def encode(split: Split, teacher: SequenceModel) -> Encoded:
    return Encoder(16, warnings=StageWarnings()).encode(split, teacher.tokenizer, pad_id=teacher.pad_id)


def by_row(outputs: TeacherOutputs) -> Any:
    return outputs.values[outputs.place]


def teach(
    root: Path, split: Split, teacher: SequenceModel, *, model: Any = None, computed: list[int], checked: bool = True
) -> TeacherOutputs:
    (root / "parts").mkdir(exist_ok=True)
    return TeacherPass(
        store=FileStore(f"file://{root}/store"),
        digest="0" * 64,
        model=model or teacher.model,
        outputs_of=lambda answer, _: answer.logits,
        encoded=encode(split, teacher),
        keys=split.keys,
        training=an_order(root).training,
        columns=teacher.columns,
        check=numbers_check(split, fetch(root / "teacher")) if checked else lambda _: None,
        folder=root / "parts",
        save_interval_s=0.0,
        stop=lambda: False,
        on_batch=lambda done, _: computed.append(done),
    ).run()


def test_every_row_gets_its_own_outputs_although_equal_texts_are_computed_once(tmp_path: Path):
    """More rows than one batch, of many lengths."""
    texts = [text for text, _ in sentences(100, 4)]
    texts += reversed(texts[:30])
    teacher = load_teacher(save_bert(tmp_path / "teacher"))
    computed: list[int] = []

    outputs = teach(tmp_path, a_split(texts), teacher, computed=computed)

    want = [answers(teacher, text)[0] for text in texts]
    np.testing.assert_allclose(by_row(outputs), want, rtol=1e-4, atol=1e-5)
    assert computed[-1] == len(set(texts))


def test_stored_outputs_are_reused_by_other_rows_with_the_same_texts(tmp_path: Path):
    texts = [text for text, _ in sentences(40, 4)]
    teacher = load_teacher(save_bert(tmp_path / "teacher"))
    teach(tmp_path, a_split(texts[:30]), teacher, computed=[])
    computed: list[int] = []

    outputs = teach(tmp_path, a_split(texts[::-1]), teacher, computed=computed)
    again = teach(tmp_path, a_split(texts[5:9]), teacher, computed=[])

    want = [answers(teacher, text)[0] for text in texts[::-1]]
    np.testing.assert_allclose(by_row(outputs), want, rtol=1e-4, atol=1e-5)
    assert computed[-1] == len(set(texts)) - len(set(texts[:30]))
    assert (outputs.reused, again.reused) == (False, True)


def test_outputs_that_are_no_numbers_are_neither_kept_nor_used(tmp_path: Path):
    """The key of what is kept holds neither device nor version: one bad moment would stay for ever."""
    teacher, split = load_teacher(save_bert(tmp_path / "teacher")), a_split(["good", "bad"])
    broken = copy.deepcopy(teacher.model)
    with torch.no_grad():
        broken.classifier.bias.fill_(float("nan"))

    with pytest.raises(CheckpointInvalid, match="outputs on train are not numbers"):
        teach(tmp_path, split, teacher, model=broken, computed=[])

    assert FileStore(f"file://{tmp_path}/store").list_objects("") == []
    teach(tmp_path, split, teacher, model=broken, computed=[], checked=False)  # as an older release kept them
    outputs = teach(tmp_path, split, teacher, computed=[])
    assert np.isfinite(by_row(outputs)).all()
    assert not outputs.reused
