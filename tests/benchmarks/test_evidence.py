"""bench/evidence.py: its small size, interrupted and continued; and what it plans."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path
from statistics import fmean

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


def of_data(name: str) -> list[dict[str, str]]:
    with (CHECKOUT / "docs" / name).open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_answers_on_the_page_are_those_of_its_students():
    values: dict[tuple[str, ...], list[float]] = {}
    for row in of_data("evidence.csv"):
        values.setdefault((row["task"], row["student"], row["transfer"], row["arm"]), []).append(float(row["value"]))

    for answer in of_data("evidence-answers.csv"):
        question = answer["task"], answer["student"], answer["transfer"]
        # In this study, labels alone have one set of students for both questions of a task.
        control = (*question[:2], "no" if answer["control"] == "Direct" else answer["transfer"], answer["control"])
        arms = [values[(*question, "chain")], values[control]]
        assert [len(arm) for arm in arms] == [5, 5]
        means = [fmean(arm) for arm in arms]
        assert means == pytest.approx([float(answer["chain"]), float(answer["control_value"])], abs=2e-5)
        assert means[0] - means[1] == pytest.approx(float(answer["difference"]), abs=2e-5)


def test_the_page_says_what_its_data_say():
    answers = of_data("evidence-answers.csv")
    page = " ".join((CHECKOUT / "docs/evidence.md").read_text().split())
    gains, controls = ([row for row in answers if row["control"] == name] for name in ("FromRoot", "Direct"))
    for from_root, direct in zip(gains, controls, strict=True):
        words = {"NotWorthIt": "not worth it", "Undecided": "undecided", "WorthIt": "worth it"}[from_root["outcome"]]
        question = " | ".join(from_root[name] for name in ("task", "student", "transfer"))
        chain = f"{100 * float(from_root['chain']):.1f}"
        assert f"| {question} | {chain} | {cells(from_root)} | {cells(direct)} | {words} |" in page

    assert not [row for row in gains if float(row["low"]) > 0], "in none is the chain certainly better than FromRoot"
    assert sum(row["outcome"] == "NotWorthIt" for row in gains) == 1
    assert sum(float(row["low"]) > 0 for row in controls) == 5
    assert max(float(row["high"]) for row in gains) < 0.03
    detectable = sorted(100 * float(row["detectable"]) for row in gains if row["outcome"] == "Undecided")
    assert f"show only differences above {detectable[0]:.1f} to {detectable[-1]:.1f} points" in page
    assert sum(float(row["high"]) >= 0.007 for row in gains) == 8
    assert "A gain of 0.7 points is possible in eight." in page
    assert "In five of ten questions the chain is better than the labels alone" in page


def cells(answer: dict[str, str]) -> str:
    difference, low, high = (
        f"{100 * float(answer[name]):+.1f}".replace("-0.0", "0.0").replace("+0.0", "0.0")
        for name in ("difference", "low", "high")
    )
    return f"{difference} ({low} to {high}) | {100 * float(answer['detectable']):.1f}"
