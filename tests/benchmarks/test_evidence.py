"""bench/evidence.py: its small size, interrupted and continued; and what it plans."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
from bench.evidence_study.chains import SMALL, Arm, Sizes, build_chains, cells_of

CHECKOUT = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("DISTILLCHAIN_SHARED") or CHECKOUT.parent / "shared")


def study(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(CHECKOUT / "bench/evidence.py"), str(folder / "inputs"), *arguments]
    done = subprocess.run(
        command,
        cwd=folder,
        env=os.environ | {"DISTILLCHAIN_SHARED": str(SHARED)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def test_all_arms_of_a_question_train_on_as_many_rows():
    sizes = Sizes()
    # Of labels alone, and of labels and unlabelled text.
    for task, rows in (("sst2", 4_000), ("topic", 4_000)):
        passes = [
            sizes.epochs(task, transfer=transfer) * (rows + transfer * sizes.transfer_rows)
            for transfer in (False, True)
        ]
        assert passes == [sizes.passes, sizes.passes]


def test_chains_share_what_they_can(tmp_path: Path):
    chains = build_chains(tmp_path, Sizes())
    digests = {stage.digest for chain in chains for stage in chain.plan.stages}
    questions = cells_of(Sizes())

    assert len(questions) == 10
    assert len(chains) == 10 * 2 * 5 + 6 * 5
    # Beside the last students: a root teacher of each task, and the layer before each BERT-tiny. The BERT-tiny before a
    # femto is a student of the study itself.
    assert len(digests) == len(chains) + 3 + 5
    assert not [cell for cell in questions if cell.task == "names" and cell.transfer]
    assert {chain.arm for chain in chains if chain.cell.transfer} == {Arm.CHAIN, Arm.FROM_ROOT}


@pytest.mark.shared
@pytest.mark.slow
def test_the_small_study_is_interrupted_and_continued(tmp_path: Path, shared: Path):
    assert shared == SHARED, "where bench/evidence.py looks"
    study(tmp_path, "--prepare")
    small = ("--small", "--work", "work", "--parallel", "2", "--csv", "students.csv")

    first = study(tmp_path, *small, "--budget-s", "15")
    second = study(tmp_path, *small)
    third = study(tmp_path, *small)

    stages = len({stage.digest for chain in build_chains(tmp_path, SMALL) for stage in chain.plan.stages})
    assert f" {stages} stages are left, about" in first.stdout
    assert "  0 stages are left" not in first.stdout
    assert "  0 stages are left" in second.stdout
    # All is trained, so no chain is run.
    assert " done in " not in third.stdout
    with (tmp_path / "students.csv").open() as file:
        students = list(csv.DictReader(file))
    assert [(row["arm"], row["seed"]) for row in students] == [
        (arm, seed) for arm in ("FromRoot", "chain", "Direct") for seed in ("42", "43")
    ]
    # The same number of steps for each arm, and the chain has another stage before.
    assert {row["steps"] for row in students} == {"30"}
    minutes = {row["arm"]: float(row["minutes_of_route"]) / float(row["minutes"]) for row in students}
    assert minutes["chain"] > minutes["FromRoot"] > minutes["Direct"] == 1
    with (tmp_path / "students-answers.csv").open() as file:
        answers = list(csv.DictReader(file))
    assert [(row["control"], row["seeds"], row["rows"]) for row in answers] == [
        ("FromRoot", "2", "192"),
        ("Direct", "2", "192"),
    ]
    assert answers[0]["sentence"] in second.stdout
    plotted = study(tmp_path, "--csv", "students.csv", "--plot", "answers.svg")
    assert "chain minus FromRoot" in (tmp_path / "answers.svg").read_text()
    # The same table from the file as from the store.
    assert plotted.stdout.strip() in third.stdout
