"""A stage with unlabelled text: what its rows learn from, what the teacher computes, and what the manifest says."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.modeling_outputs import SequenceClassifierOutput

from distillchain_api.resource.distillation import Distillation
from distillchain_api.wire.work_order import WorkOrder
from distillchain_trainer.stage.row_losses import row_losses_of
from distillchain_trainer.stage_warnings import StageWarnings
from distillchain_trainer.tasks import adapter_for
from trainer.parts import an_order, manifest_of, run_here, sentences

pytestmark = pytest.mark.models

NEW = [text for text, _ in sentences(40, 7)]


def with_text(root: Path, texts: list[str], **parts: Any) -> WorkOrder:
    (root / "data" / "more.txt").write_text("".join(f"{text}\n" for text in texts))
    transfer = {"uri": f"file://{root}/data", "files": ["more.txt"]}
    return an_order(root, task={"transfer": transfer}, distillation={"alpha": 0.5}, **parts)


def computed_rows(caplog: pytest.LogCaptureFixture) -> list[int]:
    return [vars(record)["computed"] for record in caplog.records if record.message.startswith("teacher logits")]


def test_adding_text_computes_only_the_teacher_s_answers_for_it(root: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    known = (root / "data" / "dev.tsv").read_text().splitlines()[1].split("\t")[0].upper()
    run_here(an_order(root, distillation={"alpha": 0.5}), root, attempt="labelled")

    fewer, more = with_text(root, NEW[:30]), [*NEW, "", known]
    run_here(fewer, root, attempt="fewer")
    first_text = manifest_of(root, fewer.digest).data["transfer"]
    # Another recipe, because the text behind the same URI is no part of the digest.
    order = with_text(root, more, training={"epochs": 1})
    run_here(order, root, attempt="more")

    manifest = manifest_of(root, order.digest)
    assert computed_rows(caplog) == [160, 30, 10]
    assert first_text.rows == 30
    assert manifest.data["transfer"].rows == 40
    assert manifest.data["transfer"].left_out == {"empty": 1, "validation": 1, "train": 0, "repeated": 0}
    assert manifest.run.steps == -(-200 // 16)


def test_a_row_without_a_label_learns_from_the_teacher_with_its_full_weight(root: Path):
    adapter = adapter_for(an_order(root).task, StageWarnings())
    logits = torch.tensor([[0.5, -1.0], [2.0, 1.0]])
    teacher = torch.tensor([[1.0, 0.0], [0.0, 3.0]])
    compared = {"targets": torch.tensor([1, 0]), "teacher": teacher, "labelled": torch.tensor([True, False])}

    losses = row_losses_of(adapter, Distillation(alpha=0.25))(SequenceClassifierOutput(logits=logits), compared)

    kl = torch.nn.functional.kl_div(logits.log_softmax(-1), teacher.softmax(-1), reduction="none").sum(-1)
    labels = torch.nn.functional.cross_entropy(logits, compared["targets"], reduction="none")
    torch.testing.assert_close(losses, torch.stack([0.75 * labels[0] + 0.25 * kl[0], kl[1]]))


def test_for_decoupled_the_teacher_s_own_class_counts_where_there_is_no_label(root: Path):
    adapter = adapter_for(an_order(root).task, StageWarnings())
    answer = SequenceClassifierOutput(logits=torch.tensor([[0.5, -1.0]]))
    compared = {"targets": torch.tensor([0]), "teacher": torch.tensor([[0.0, 3.0]])}
    losses = row_losses_of(adapter, Distillation(objective="Decoupled"))

    unlabelled = losses(answer, compared | {"labelled": torch.tensor([False])})

    torch.testing.assert_close(unlabelled, losses(answer, compared | {"targets": torch.tensor([1])}))


def test_a_state_of_other_unlabelled_text_is_not_resumed(root: Path):
    """The text behind a URI may change: a state of the old text must not become the student of the new one."""
    from distillchain_store.opening import open_store
    from distillchain_trainer.signals import Signals
    from distillchain_trainer.stage.context import Context
    from distillchain_trainer.stage.prepare import prepare
    from distillchain_trainer.stage.progress import Reporter

    def source(texts: list[str], name: str) -> str:
        order = with_text(root, texts)
        folder = root / name
        folder.mkdir()
        store = open_store(order.storage.uri, endpoint_url=None, region=None)
        return prepare(Context(order, store, name, folder, Reporter(order.stage, None), Signals())).source

    assert source(NEW, "a") != source(NEW[1:], "b")
    assert source(NEW[1:], "c") == source(NEW[1:], "d")
