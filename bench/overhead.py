"""What a stage costs beside its models: process start, imports, store, checks and report.

    python bench/overhead.py            # five runs of the offline SST-2 chain with few rows; medians
    python bench/overhead.py --runs 3

Compares versions on the same machine. Needs the folder `shared` beside the checkout. Add results to bench/LOG.md with
date, machine and command.
"""

from __future__ import annotations

import argparse
import itertools
import resource
import statistics
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

from sst2 import CHAIN, SST2, clocked

from distillchain_api.wire.manifest import Manifest

ROWS = {"train.tsv": 256, "dev.tsv": 64}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5, help="how often everything is run (%(default)s)")
    options = parser.parse_args()
    if not SST2.is_dir():
        parser.error(f"{SST2} is not there: this bench needs SST-2 and the checkpoints of the folder shared")
    found: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        data.mkdir()
        for name, rows in ROWS.items():
            with (SST2 / name).open(newline="") as source, (data / name).open("w", newline="") as copy:
                copy.writelines(itertools.islice(source, rows + 1))
        for _ in range(options.runs):
            for name, value in run_once(data).items():
                found[name].append(value)
    print("| median of", options.runs, "runs | s |\n|---|---|")
    for name, values in found.items():
        print(f"| {name} | {statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f}) |")
    return 0


def run_once(data: Path) -> dict[str, float]:
    """Seconds of each measurement."""
    with tempfile.TemporaryDirectory() as store:
        common = [str(CHAIN), "--storage", f"file://{store}"]
        settings = [f"spec.task.dataset.uri=file://{data}", "spec.template.training.epochs=1", "spec.teacher.gate=null",
                    "spec.task.dataset.splits.test=null"]  # fmt: skip
        common += itertools.chain.from_iterable(("--set", value) for value in settings)
        validate_s, _ = clocked(["-m", "distillchain_cli", "validate", *common])
        cpu_before_s = cpu_of_children_s()
        first_s, _ = clocked(["-m", "distillchain_cli", "run", *common])
        cpu_s = cpu_of_children_s() - cpu_before_s
        manifests = [Manifest.parse(path.read_bytes()) for path in Path(store).glob("stages/*/manifest.json")]
        again_s, _ = clocked(["-m", "distillchain_cli", "run", *common])
    models_s = sum(manifest.run.model_s for manifest in manifests)
    inside_s = sum(manifest.run.elapsed_s for manifest in manifests)
    return {
        "distillchain validate": validate_s,
        "distillchain run, two stages": first_s,
        "CPU time of that": cpu_s,
        "of that in models": models_s,
        "not in models, per stage": (first_s - models_s) / len(manifests),
        "not in models, per stage, from the start of the stage to its commit": (inside_s - models_s) / len(manifests),
        "distillchain run again, both stages committed": again_s,
    }


def cpu_of_children_s() -> float:
    """CPU time of the processes that have ended. On a machine with other work it varies less than wall time."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    sys.exit(main())
