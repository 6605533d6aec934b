"""Label smoothing and class weights in a whole stage."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from trainer.parts import an_order, manifest_of, new_student, run_here, sentences, write_tsv

pytestmark = pytest.mark.models


@pytest.mark.parametrize("micro_batch_size", [16, 5])
def test_the_loss_of_a_stage_is_the_weighed_and_smoothed_one_over_its_rows(root: Path, micro_batch_size: int):
    """A student that hardly moves, measured on the rows it learns from: its loss is a formula of what was kept."""
    rows = [row for row in sentences(240, 1) if row[1] or "the" in row[0]]  # not balanced
    write_tsv(root / "data/train.tsv", rows)
    write_tsv(root / "data/train-reversed.tsv", [*rows[::-1], ("the same texts alone would be refused", 1)])
    order = an_order(
        root,
        student=new_student(root, dropout=0.0),
        splits={"validation": "train-reversed.tsv"},
        training={
            "epochs": 1,
            "batchSize": len(rows),
            "learningRate": 1e-12,
            "labelSmoothing": 0.2,
            "balancedClasses": True,
        },
        distillation={"alpha": 0},
        template={"microBatchSize": micro_batch_size},
    )

    answer = run_here(order, root)

    lines = Path(answer.checkpoint[7:], "../results/predictions-validation.jsonl").read_text().splitlines()[: len(rows)]
    logits = torch.tensor([json.loads(line)["logits"] for line in lines])
    labels = torch.tensor([label for _, label in rows[::-1]])
    weights = len(rows) / (2 * torch.bincount(labels).float())
    smoothed = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.2, reduction="none")
    want = (weights[labels] * smoothed).mean()
    assert (weights - 1).abs().min() > 0.1
    assert manifest_of(root, order.digest).run.final_loss == pytest.approx(want.item(), rel=1e-4)
