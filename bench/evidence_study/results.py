"""The results of the study, from the committed stages of its store: a line for each student and for each control."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import fmean
from typing import Any

from distillchain_api.metrics import default_smallest_gain
from distillchain_report.commits import gpu_hours
from distillchain_report.evidence.paired import Difference, difference, mean_interval
from distillchain_report.evidence.verdict import judge
from distillchain_report.load import LoadedStage, WantedStage, load_stages
from distillchain_report.sections import section_of
from distillchain_report.seed_runs import have_same_rows, row_unit, seed_runs
from distillchain_store.folder import FileStore

from .chains import Arm, Cell, StudyChain, direct_cell


@dataclass(frozen=True)
class StudentRow:
    """A student of the study."""

    task: str
    student: str
    transfer: str
    arm: str
    seed: int
    metric: str
    value: float
    teacher: float | None
    parameters: int
    steps: int
    minutes: float
    minutes_of_route: float
    gpu_hours: float
    device: str
    digest: str


@dataclass(frozen=True)
class AnswerRow:
    """The chain against one control."""

    task: str
    student: str
    transfer: str
    control: str
    metric: str
    rows: int
    seeds: int
    seeds_of_control: int
    chain: float
    chain_low: float
    chain_high: float
    control_value: float
    control_low: float
    control_high: float
    difference: float
    low: float
    high: float
    p_value: float
    detectable: float
    outcome: str
    sentence: str


Runs = dict[tuple[Cell, Arm], list[tuple[StudyChain, LoadedStage]]]


def load_runs(folder: Path, chains: Sequence[StudyChain]) -> Runs:
    """The committed last stages, by question and arm, in the order of their seeds."""
    store = FileStore(f"file://{folder}/store")
    found: Runs = {}
    for chain in chains:
        last = chain.plan.students[-1]
        (loaded,) = load_stages(store, [WantedStage(last.name, last.digest)])
        if loaded.manifest is not None:
            found.setdefault((chain.cell, chain.arm), []).append((chain, loaded))
    return {key: sorted(runs, key=lambda run: run[0].seed) for key, runs in found.items()}


def student_rows(folder: Path, runs: Runs) -> list[StudentRow]:
    """One line for each student."""
    store = FileStore(f"file://{folder}/store")
    rows = []
    for (cell, arm), found in runs.items():
        for chain, loaded in found:
            manifest = loaded.manifest
            assert manifest is not None
            route = load_stages(store, [WantedStage(stage.name, stage.digest) for stage in chain.plan.students])
            # A student that learns from labels needs no teacher.
            trained = [loaded.manifest] if arm is Arm.DIRECT else [each.manifest for each in route]
            name = chain.plan.chain.spec.task.metric
            rows.append(
                StudentRow(
                    task=cell.task,
                    student=cell.student,
                    transfer=_yes(cell.transfer),
                    arm=arm,
                    seed=chain.seed,
                    metric=name,
                    value=manifest.student.metrics.validation[name],
                    teacher=manifest.teacher.metrics.validation[name] if manifest.teacher else None,
                    parameters=manifest.student.parameters,
                    steps=manifest.run.steps,
                    minutes=round(manifest.run.elapsed_s / 60, 3),
                    minutes_of_route=round(sum(each.run.elapsed_s for each in trained if each) / 60, 3),
                    gpu_hours=round(sum(gpu_hours(each) for each in trained if each), 5),
                    device=manifest.environment.get("device", ""),
                    digest=manifest.digest[:12],
                )
            )
    return rows


def answer_rows(runs: Runs, cells: Sequence[Cell]) -> list[AnswerRow]:
    """Two lines for each question of which all arms have at least two students."""
    return [row for cell in cells for row in _answers(runs, cell)]


def _answers(runs: Runs, cell: Cell) -> list[AnswerRow]:
    arms = {arm: runs.get((direct_cell(cell) if arm is Arm.DIRECT else cell, arm), []) for arm in Arm}
    students = {arm: [loaded for _, loaded in found] for arm, found in arms.items()}
    everyone = [loaded for found in students.values() for loaded in found]
    if min(map(len, students.values())) < 2:
        return []
    task = arms[Arm.CHAIN][0][0].plan.chain.spec.task
    metric, section = task.deciding_metric, section_of(task.to_document())
    numbers = {arm: seed_runs(found, metric.name, section) for arm, found in students.items()}
    chain = numbers[Arm.CHAIN]
    if not have_same_rows(everyone, section) or chain is None:
        return []
    controls = [arm for arm in Arm if arm is not Arm.CHAIN]
    differences: dict[str, Difference] = {
        arm: difference(chain, control, comparisons=len(controls), row_unit=row_unit(metric))
        for arm in controls
        if (control := numbers[arm])
    }
    mean = fmean(chain.values)
    intervals = {arm: mean_interval(found, row_unit=row_unit(metric)) for arm, found in numbers.items() if found}
    judged = judge(differences, metric, smallest_gain=default_smallest_gain(metric, mean))
    return [
        AnswerRow(
            task=cell.task,
            student=cell.student,
            transfer=_yes(cell.transfer),
            control=control,
            metric=metric.name,
            rows=found.rows,
            seeds=len(students[Arm.CHAIN]),
            seeds_of_control=len(students[Arm(control)]),
            chain=mean,
            chain_low=intervals[Arm.CHAIN][0],
            chain_high=intervals[Arm.CHAIN][1],
            control_value=mean - found.value,
            control_low=intervals[Arm(control)][0],
            control_high=intervals[Arm(control)][1],
            difference=found.value,
            low=found.low,
            high=found.high,
            p_value=found.p_value,
            detectable=found.detectable,
            outcome=judged.outcome,
            sentence=judged.sentence,
        )
        for control, found in differences.items()
    ]


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def csv_text(rows: Sequence[StudentRow] | Sequence[AnswerRow]) -> str:
    """Rows as CSV with a header; numbers with five digits."""
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, [field.name for field in fields(rows[0])], lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: _rounded(value) for name, value in asdict(row).items()} for row in rows)
    return text.getvalue()


def read_answers(file: Path) -> list[AnswerRow]:
    """The rows of a file that `csv_text` has written."""
    numbers = {field.name: {"int": int, "float": float}.get(str(field.type), str) for field in fields(AnswerRow)}
    with file.open(newline="") as lines:
        return [
            AnswerRow(**{name: numbers[name](value) for name, value in row.items()}) for row in csv.DictReader(lines)
        ]


def _rounded(value: Any) -> Any:
    return round(value, 5) if isinstance(value, float) else value


def answers_table(rows: Iterable[AnswerRow]) -> str:
    """Markdown."""
    titles = ("task", "student", "unlabelled text", "control", "chain", "control", "difference", "95 % interval",
              "detectable", "outcome")  # fmt: skip
    lines = [f"| {' | '.join(titles)} |", "|" + "---|" * len(titles)]
    lines += [
        f"| {row.task} | {row.student} | {row.transfer} | {row.control} | {row.chain:.3f} | {row.control_value:.3f} | "
        f"{row.difference:+.3f} | {row.low:+.3f} to {row.high:+.3f} | {row.detectable:.3f} | {row.outcome} |"
        for row in rows
    ]
    return "\n".join(lines)
