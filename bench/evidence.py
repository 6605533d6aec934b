"""Were the steps of a chain worth it? The study of docs/evidence.md: chain, FromRoot and Direct on three public tasks.

    python bench/evidence.py .evidence --prepare            # writes the inputs from ../shared, 50 MB
    python bench/evidence.py .evidence --plan               # what would be trained, and the budget
    python bench/evidence.py .evidence --work .evidence-work --parallel 2 --csv docs/evidence.csv
    python bench/evidence.py .evidence --csv docs/evidence.csv --plot docs/images/evidence.svg

The study is a set of DistillationChains in one store (WORK/chains, WORK/store). `distillchain run` trains them, and
trains nothing twice: stop the study at any time, and run the same command again to continue, also with more seeds. The
numbers of rows must stay the same. Another machine needs only the inputs, this project and its packages. If it has a
GPU, the chains that run at the same time share it.

Prints a line for each chain that has ended, then the answers as a table. `--csv FILE` writes the students, and beside
it `FILE-answers.csv`. A small trial that says only that the study works: --small.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from pathlib import Path

from evidence_study.chains import SMALL, Sizes, StudyChain, build_chains, cells_of
from evidence_study.inputs import prepare, unpack
from evidence_study.plot import draw
from evidence_study.results import answer_rows, answers_table, csv_text, load_runs, read_answers, student_rows
from evidence_study.schedule import open_stages, run_chains, same_sizes

# Rows a second in training on two CPU cores (shared/models/README.md), and what a stage costs beside its training.
CPU_ROWS_PER_S = {"teacher": 200, "layer": 400, "tiny": 935, "femto": 2_100}
CPU_STAGE_S = 20


def main() -> int:
    """The command."""
    options = _options()
    if options.prepare:
        prepare(options.inputs)
        return 0
    sizes = _sizes(options)
    folder = options.work.resolve()
    chains = build_chains(folder, sizes)
    if options.plot:
        rows = read_answers(_answers_file(options.csv))
        draw(rows, options.plot)
        print(answers_table(rows))
        return 0
    if options.plan:
        print(budget(folder, chains, sizes))
        return 0
    folder.mkdir(parents=True, exist_ok=True)
    if not same_sizes(folder, sizes):
        sys.exit(f"{folder} has a study of other sizes (sizes.json); name another folder with --work")
    unpack(options.inputs, folder, rows=sizes.rows, transfer_rows=sizes.transfer_rows,
           validation_rows=sizes.validation_rows)  # fmt: skip
    print(budget(folder, chains, sizes), flush=True)
    failed = _run(folder, chains, options)
    _write_results(folder, chains, sizes, options.csv)
    return 1 if failed else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", type=Path, help="folder with models and data")
    parser.add_argument("--prepare", action="store_true", help="write the inputs and exit")
    parser.add_argument("--plan", action="store_true", help="print the budget and exit")
    parser.add_argument(
        "--work", type=Path, default=Path(".evidence-work"), help="store, chains and logs (%(default)s)"
    )
    parser.add_argument("--parallel", type=int, default=1, help="chains at the same time (%(default)s)")
    parser.add_argument("--budget-s", type=float, help="stop after so many seconds; default: when all is trained")
    parser.add_argument("--small", action="store_true", help="a trial with few rows, one task and two seeds")
    parser.add_argument("--rows", type=int, help="labelled training rows")
    parser.add_argument("--transfer-rows", type=int, help="unlabelled rows")
    parser.add_argument("--passes", type=int, help="rows that each student is trained on, over all epochs")
    parser.add_argument("--seeds", type=int, help="seeds of each arm")
    parser.add_argument("--tasks", help="such as sst2,names")
    parser.add_argument("--students", help="such as femto")
    parser.add_argument("--csv", type=Path, help="file for the students")
    parser.add_argument("--plot", type=Path, metavar="SVG", help="draw the answers of --csv, print them, and exit")
    return parser.parse_args()


def _sizes(options: argparse.Namespace) -> Sizes:
    sizes = SMALL if options.small else Sizes()
    stated = {name: getattr(options, name) for name in ("rows", "transfer_rows", "passes", "seeds")}
    lists = {name: tuple(getattr(options, name).split(",")) for name in ("tasks", "students") if getattr(options, name)}
    return dataclasses.replace(sizes, **{name: value for name, value in stated.items() if value}, **lists)


def budget(folder: Path, chains: list[StudyChain], sizes: Sizes) -> str:
    """What is to be trained, and how long that would take on two CPU cores."""
    stages = {stage.digest: (stage, chain) for chain in chains for stage in chain.plan.stages}
    left = set().union(*(open_stages(folder, chain) for chain in chains))
    rows = {digest: _rows_trained(stage.work_order.training.epochs, chain, sizes, stage.name)
            for digest, (stage, chain) in stages.items()}  # fmt: skip
    hours = sum(rows[digest] / CPU_ROWS_PER_S[stages[digest][0].name] + CPU_STAGE_S for digest in left) / 3600
    return (
        f"{len(cells_of(sizes))} questions, {len(chains)} chains, {len(stages)} stages, "
        f"{sum(rows.values()) / 1e6:.2f} million trained rows; {len(left)} stages are left, about {hours:.1f} hours on "
        "two CPU cores"
    )


def _rows_trained(epochs: int, chain: StudyChain, sizes: Sizes, stage: str) -> int:
    return epochs * (
        sizes.labelled(chain.cell.task) + (sizes.transfer_rows if chain.cell.transfer and stage != "teacher" else 0)
    )


def _run(folder: Path, chains: list[StudyChain], options: argparse.Namespace) -> int:
    """Returns: how many chains failed."""
    began, failed = time.monotonic(), 0
    for ended in run_chains(folder, chains, parallel=options.parallel, budget_s=options.budget_s):
        state = "done" if ended.exit_code == 0 else f"failed with exit code {ended.exit_code}, see {ended.log}"
        print(f"{time.monotonic() - began:6.0f} s  {ended.chain.name}: {state} in {ended.seconds:.0f} s", flush=True)
        failed += ended.exit_code != 0
    left = len(set().union(*(open_stages(folder, chain) for chain in chains)))
    print(f"{time.monotonic() - began:6.0f} s  {left} stages are left", flush=True)
    return failed


def _write_results(folder: Path, chains: list[StudyChain], sizes: Sizes, file: Path | None) -> None:
    runs = load_runs(folder, chains)
    answers = answer_rows(runs, cells_of(sizes))
    if file is not None:
        file.write_text(csv_text(student_rows(folder, runs)))
        _answers_file(file).write_text(csv_text(answers))
    print(answers_table(answers))
    # Both controls of a question have its sentence.
    for row in {(row.task, row.student, row.transfer): row for row in answers}.values():
        print(f"{row.task}, {row.student}, unlabelled text {row.transfer}: {row.sentence}")


def _answers_file(students: Path) -> Path:
    return students.with_name(f"{students.stem}-answers.csv")


if __name__ == "__main__":
    sys.exit(main())
