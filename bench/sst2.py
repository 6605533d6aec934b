"""The offline SST-2 relay, MiniLM-L6 -> BERT-tiny -> bert-hash femto: accuracy, time, and time not spent in models.

    python bench/sst2.py                          # the published recipe: all rows, five epochs per stage
    python bench/sst2.py --rows 10000 --epochs 1  # the short one, for comparing versions
    python bench/sst2.py --rows 10000 --epochs 1 --against-plain 3  # alternating with bench/plain.py; medians

Runs `distillchain run examples/sst2/offline.yaml` into a fresh store and reads the manifests. Needs the folder `shared`
beside the checkout. Add results to bench/LOG.md with date, machine and command.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from distillchain_api.resource.status import ChainStatus
from distillchain_api.wire.manifest import Manifest

CHECKOUT = Path(__file__).resolve().parent.parent
SST2 = CHECKOUT.parent / "shared" / "data" / "sst2-glue"
CHAIN = CHECKOUT / "examples/sst2/offline.yaml"
EPOCHS = 5  # the chain's own


@dataclass(frozen=True)
class Run:
    """One run of the chain into a fresh store."""

    wall_s: float
    manifests: list[Manifest]

    @property
    def model_s(self) -> float:
        """Seconds in models, including the measuring of teachers and students."""
        return sum(manifest.run.model_s for manifest in self.manifests)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, help="rows of the training split, from its start; default: all")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="epochs of every stage (%(default)s)")
    parser.add_argument("--set", action="append", default=[], help="passed to `distillchain run`")
    parser.add_argument("--against-plain", type=int, metavar="N", help="alternate with bench/plain.py, N times")
    options = parser.parse_args()
    if not SST2.is_dir():
        parser.error(f"{SST2} is not there: this bench needs SST-2 and the checkpoints of the folder shared")
    with tempfile.TemporaryDirectory() as folder:
        data = cut_data(Path(folder) / "data", options.rows)
        if options.against_plain:
            compare(data, options.epochs, options.set, turns=options.against_plain)
            return 0
        run = run_chain(data, options.epochs, options.set)
    print_rows(run.manifests)
    elsewhere = 1 - run.model_s / run.wall_s
    print(f"\nwall {run.wall_s:.1f} s, in models {run.model_s:.1f} s, elsewhere {elsewhere:.1%}")
    print(json.dumps(run.manifests[-1].environment))
    return 0


def cut_data(folder: Path, rows: int | None) -> Path:
    """The splits, with the first `rows` of train."""
    folder.mkdir()
    for split in ("train", "dev", "test"):
        with (
            (SST2 / f"{split}.tsv").open(newline="") as source,
            (folder / f"{split}.tsv").open("w", newline="") as copy,
        ):
            stop = rows + 1 if split == "train" and rows else None  # plus the header
            copy.writelines(itertools.islice(source, stop))
    return folder


def run_chain(data: Path, epochs: int, settings: list[str]) -> Run:
    """Raises: SystemExit with the exit code of `distillchain run` if it fails."""
    wanted = [f"spec.task.dataset.uri=file://{data}", f"spec.template.training.epochs={epochs}", *settings]
    with tempfile.TemporaryDirectory() as store:
        command = [*("-m", "distillchain_cli", "run", str(CHAIN), "-o", "json", "--storage", f"file://{store}")]
        command += itertools.chain.from_iterable(("--set", value) for value in wanted)
        wall_s, answer = clocked(command)
        stages = ChainStatus.parse(answer).stages
        paths = [Path(store) / "stages" / stage.digest / "manifest.json" for stage in stages]
        return Run(wall_s, [Manifest.parse(path.read_bytes()) for path in paths])


def clocked(command: list[str]) -> tuple[float, bytes]:
    """Runs Python with `command`. Returns: seconds and stdout. Raises: SystemExit if it fails."""
    began = time.perf_counter()
    done = subprocess.run([sys.executable, *command], stdout=subprocess.PIPE, check=False)
    if done.returncode:
        sys.exit(done.returncode)
    return time.perf_counter() - began, done.stdout


def compare(data: Path, epochs: int, settings: list[str], *, turns: int) -> None:
    """Runs the chain and the plain script in turn and prints medians and their ratio."""
    walls: list[float] = []
    inner: list[dict[str, float]] = []
    starts: list[float] = []
    runs: list[Run] = []
    for _ in range(turns):
        starts.append(clocked(["-c", "import distillchain_trainer.stage.compute"])[0])
        wall_s, answer = clocked([str(CHECKOUT / "bench/plain.py"), str(data), str(epochs)])
        walls.append(wall_s)
        inner.append(json.loads(answer.splitlines()[-1]))  # after the Trainer's own output
        runs.append(run_chain(data, epochs, settings))
    print("| median of the turns | plain script | distillchain run | ratio |\n|---|---|---|---|")
    worked = [sum(seconds.values()) for seconds in inner]
    for name, plain, ours in (
        ("the whole command", walls, [run.wall_s for run in runs]),
        ("the same without the start of Python, torch and transformers", *without(starts, walls, runs)),
        ("in models", worked, [run.model_s for run in runs]),
    ):
        a, b = statistics.median(plain), statistics.median(ours)
        print(f"| {name} | {a:.1f} s | {b:.1f} s | {b / a:.2f} |")
    for name in inner[0]:
        print(f"| plain: {name} | {statistics.median(seconds[name] for seconds in inner):.1f} s | | |")
    print("\nplain:", *(f"{value:.1f}" for value in walls), "s; chain:", *(f"{run.wall_s:.1f}" for run in runs), "s")


def without(starts: list[float], walls: list[float], runs: list[Run]) -> tuple[list[float], list[float]]:
    """Wall times without one start for the plain script and one per stage for the chain."""
    start_s = statistics.median(starts)
    return [wall - start_s for wall in walls], [run.wall_s - start_s * len(run.manifests) for run in runs]


def print_rows(manifests: list[Manifest]) -> None:
    print(
        "| stage | parameters | dev | test | wall s | in models s | train examples/s |\n|---|---|---|---|---|---|---|"
    )
    root = manifests[0].teacher
    if root and root.metrics.test:
        dev, test = root.metrics.validation["accuracy"], root.metrics.test["accuracy"]
        print(f"| (root) | {root.parameters:,} | {dev:.2%} | {test:.2%} | - | - | - |")
    for manifest in manifests:
        student, run = manifest.student, manifest.run
        metrics = student.metrics
        test_text = f"{metrics.test['accuracy']:.2%}" if metrics.test else "-"
        print(
            f"| {manifest.stage} | {student.parameters:,} | {metrics.validation['accuracy']:.2%} | {test_text} | "
            f"{run.elapsed_s:.1f} | {run.model_s:.1f} | {run.examples_per_second:,.0f} |"
        )


if __name__ == "__main__":
    sys.exit(main())
