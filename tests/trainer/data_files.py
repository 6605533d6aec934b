"""Builders of data files and of the tasks that read them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from distillchain_api.tasks.text_classification import TextClassification as Task
from distillchain_trainer.data.split import Split, TaskData
from distillchain_trainer.stage_warnings import StageWarnings
from distillchain_trainer.tasks.text_classification.rows import read_task_data

LABELS = ["negative", "positive"]
HEADER = b"sentence\tlabel\n"


def a_task(
    folder: Path,
    train: str,
    *,
    validation: str = "held-out.jsonl",
    test: str | None = None,
    text: list[str] | None = None,
    labels: list[str] | None = None,
    label: str = "label",
) -> Task:
    splits = {"train": train, "validation": validation, **({"test": test} if test else {})}
    dataset = {"uri": f"file://{folder}", "splits": splits, "text": text or ["sentence"], "label": label}
    return Task.parse({"type": "TextClassification", "dataset": dataset, "labels": labels or LABELS})


def read_all(folder: Path, train: str, **parts: Any) -> tuple[TaskData, list[str]]:
    """All splits and the warnings. A validation file is written unless the test names one."""
    task = a_task(folder, train, **parts)
    if "validation" not in parts:
        rows = [dict.fromkeys(task.dataset.text, f"held out {row}") for row in range(2)]
        labelled = [{**row, task.dataset.label: task.labels[i]} for i, row in enumerate(rows)]
        (folder / "held-out.jsonl").write_text("".join(json.dumps(row) + "\n" for row in labelled))
    warnings = StageWarnings()
    scratch = folder.with_name(f"{folder.name}-scratch")  # beside the data, whose files a message lists
    data = read_task_data(task, endpoint_url=None, region=None, folder=scratch, warnings=warnings)
    return data, warnings.sentences


def read_train(folder: Path, train: str, **parts: Any) -> Split:
    return read_all(folder, train, **parts)[0].train


def texts_of(split: Split) -> list[str]:
    return [texts[0] for texts in split.texts]
