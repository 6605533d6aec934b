"""The chains of the study. All are in one store, so that they share root teachers, steps and teachers' outputs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from distillchain_api import API_VERSION, KIND
from distillchain_api.graph import Plan, build_plan
from distillchain_api.resource.spec import DistillationChain, parse_chain

from .inputs import DATA, FEMTO, ROOT, SOURCES, TINY

FIRST_SEED = 42  # the default of a training, so that the steps of a chain are also students of the study
KINDS_OF_NAMES = ("corporation", "creative-work", "group", "location", "person", "product")


class Arm(StrEnum):
    """How the last student is trained."""

    CHAIN = "chain"
    FROM_ROOT = "FromRoot"
    DIRECT = "Direct"


@dataclass(frozen=True)
class Sizes:
    """How much is trained.

    Attributes:
        passes: rows that the last student of every chain is trained on, counted once per epoch: the same for all arms.
        root_passes: the same for the root teacher, which `names` trains twice as long: its head starts from nothing.
    """

    rows: int = 4_000
    transfer_rows: int = 8_000
    validation_rows: int | None = None
    passes: int = 24_000
    root_passes: int = 12_000
    batch_size: int = 32
    seeds: int = 5
    tasks: Sequence[str] = tuple(DATA)
    students: Sequence[str] = ("tiny", "femto")
    transfer: Sequence[bool] = (False, True)

    def epochs(self, task: str, *, transfer: bool) -> int:
        """Epochs of a student."""
        return max(1, round(self.passes / (self.labelled(task) + transfer * self.transfer_rows)))

    def root_epochs(self, task: str) -> int:
        """Epochs of the root teacher."""
        return max(1, round(self.root_passes * (2 if task == "names" else 1) / self.labelled(task)))

    def labelled(self, task: str) -> int:
        """Labelled training rows."""
        return min(self.rows, 3_394) if task == "names" else self.rows


# Teachers must beat chance, so fewer steps would not do.
SMALL = Sizes(rows=192, transfer_rows=64, validation_rows=192, passes=960, root_passes=960, batch_size=32, seeds=2,
              tasks=("sst2",), students=("femto",), transfer=(False,))  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """One question of the study: a task, a last student, and whether the teachers answer for unlabelled text too."""

    task: str
    student: str
    transfer: bool

    def __str__(self) -> str:
        return f"{self.task}-{self.student}{'-transfer' if self.transfer else ''}"


@dataclass(frozen=True)
class StudyChain:
    """One chain of the study.

    Attributes:
        plan: its stages; the last one is the student that is compared.
    """

    cell: Cell
    arm: Arm
    seed: int
    document: dict[str, Any]
    plan: Plan

    @property
    def name(self) -> str:
        """Of the chain."""
        return self.plan.chain.name


def cells_of(sizes: Sizes) -> list[Cell]:
    """All questions."""
    found = itertools.product(sizes.tasks, sizes.students, sizes.transfer)
    # Texts without tags are not available for TokenClassification (docs/token-classification.md).
    return [Cell(task, student, transfer) for task, student, transfer in found if not (transfer and task == "names")]


def build_chains(folder: Path, sizes: Sizes) -> list[StudyChain]:
    """The chains in the order in which they should start.

    Question by question, so that an interrupted study has answers. The smallest student is first: it costs least.
    """
    found = [_study_chain(folder, sizes, cell, arm, seed) for cell, arm, seed in _questions(sizes)]
    # The students of FromRoot teach in the chains, so they come first; the chains have the longest way to go.
    order = {Arm.FROM_ROOT: 0, Arm.CHAIN: 1, Arm.DIRECT: 2}
    return sorted(
        found,
        key=lambda each: (
            each.cell.transfer,
            each.cell.student != "femto",
            sizes.tasks.index(each.cell.task),
            each.seed,
            order[each.arm],
        ),
    )


def _questions(sizes: Sizes) -> Iterator[tuple[Cell, Arm, int]]:
    for cell in cells_of(sizes):
        for arm, index in itertools.product(Arm, range(sizes.seeds)):
            # Labels alone know no unlabelled text, and all arms have the same number of steps.
            if not (cell.transfer and arm is Arm.DIRECT):
                yield cell, arm, FIRST_SEED + index


def direct_cell(cell: Cell) -> Cell:
    """Where the students of Direct are, with which a question is answered."""
    return replace(cell, transfer=False)


def _study_chain(folder: Path, sizes: Sizes, cell: Cell, arm: Arm, seed: int) -> StudyChain:
    # The step in between is the larger student, or one layer of the root teacher.
    middle = ["tiny"] if cell.student == "femto" else ["layer"]
    names = [*(middle if arm is Arm.CHAIN else []), cell.student]
    stages = [_stage(folder, name, cell.task) for name in names]
    stages[-1]["training"] |= {"seed": seed}
    if arm is Arm.DIRECT:
        stages[-1]["distillation"] = {"alpha": 0.0}
    document = {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"name": f"{cell}-{arm.lower()}-s{seed - FIRST_SEED + 1}"},
        "spec": {
            "task": _task(folder, cell),
            "storage": {"uri": f"file://{folder}/store"},
            "teacher": {
                "model": f"file://{folder}/models/{ROOT}",
                "fineTune": {
                    "epochs": sizes.root_epochs(cell.task),
                    "batchSize": 32,
                    "learningRate": 3e-4 if cell.task == "names" else 1e-4,
                },
            },
            "template": {
                "training": {
                    "epochs": sizes.epochs(cell.task, transfer=cell.transfer),
                    "batchSize": sizes.batch_size,
                    "warmupRatio": 0.1,
                },
            },
            "stages": stages,
        },
    }  # fmt: skip
    return StudyChain(cell, arm, seed, document, build_plan(_parsed(document)))


def _parsed(document: dict[str, Any]) -> DistillationChain:
    return parse_chain(document)


def _stage(folder: Path, name: str, task: str) -> dict[str, Any]:
    students: dict[str, tuple[dict[str, Any], float]] = {
        "layer": ({"fromTeacher": {"layers": 1}}, 2e-4),
        "tiny": ({"model": f"file://{folder}/models/{TINY}"}, 3e-4),
        "femto": (
            {
                "architecture": {
                    "modelType": "bert-hash",
                    "config": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
                },
                "tokenizer": f"file://{folder}/models/{TINY}",
            },
            1e-3,  # with 2e-3, one of five seeds did not learn from a teacher (bench/LOG.md, 2026-11-27)
        ),
    }
    student, learning_rate = students[name]
    if name == "femto" and task == "names":
        # From new weights, so few sentences with names teach it nothing.
        student = {"model": f"file://{folder}/models/{FEMTO}"}
    return {"name": name, "student": student, "training": {"learningRate": learning_rate}}


def _task(folder: Path, cell: Cell) -> dict[str, Any]:
    name, extension = cell.task, DATA[cell.task]
    task: dict[str, Any] = {
        "type": "TextClassification",
        "dataset": {
            "uri": f"file://{folder}/data",
            "splits": {split: f"{name}-{split}.{extension}" for split in ("train", "validation")},
        },
        "maxLength": 64,
    }
    if name == "names":
        tags = [f"{place}-{kind}" for kind in KINDS_OF_NAMES for place in "BI"]
        return task | {"type": "TokenClassification", "labels": ["O", *tags], "metric": "entityF1"}
    task["dataset"] |= {"text": ["text"], "label": "label"}
    task["labels"] = ["negative", "positive"] if name == "sst2" else list(SOURCES)
    if cell.transfer:
        task["transfer"] = {"uri": f"file://{folder}/data", "files": [f"{name}-transfer.txt"]}
    return task
