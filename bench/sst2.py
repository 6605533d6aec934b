"""The offline SST-2 relay, MiniLM-L6 -> BERT-tiny -> bert-hash femto: accuracy, time, and time not spent in models.

    python bench/sst2.py                          # the published recipe: all rows, five epochs a stage
    python bench/sst2.py --rows 10000 --epochs 1  # the short one, for comparing versions

Runs `distillchain run examples/sst2/offline.yaml` into a fresh store and reads the manifests. Needs the folder `shared`
beside the checkout. Results worth keeping go to bench/LOG.md with date, machine and command.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from distillchain_api.manifest import Manifest
from distillchain_api.status import ChainStatus

CHECKOUT = Path(__file__).resolve().parent.parent
SST2 = CHECKOUT.parent / "shared" / "data" / "sst2-glue"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, help="rows of the training split, from its start; all when not said")
    parser.add_argument("--epochs", type=int, help="epochs of every stage; the chain's own when not said")
    parser.add_argument("--set", action="append", default=[], help="passed on to `distillchain run`")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        return report(Path(folder), options)


def report(folder: Path, options: argparse.Namespace) -> int:
    data = folder / "data"
    data.mkdir()
    for split in ("train", "dev", "test"):
        with (SST2 / f"{split}.tsv").open(newline="") as source, (data / f"{split}.tsv").open("w", newline="") as copy:
            # One more for the header.
            stop = options.rows + 1 if split == "train" and options.rows else None
            copy.writelines(itertools.islice(source, stop))
    command = [
        *("distillchain", "run", str(CHECKOUT / "examples/sst2/offline.yaml"), "-o", "json"),
        *("--storage", f"file://{folder}/store", "--set", f"spec.task.dataset.uri=file://{data}"),
        *itertools.chain.from_iterable(("--set", value) for value in options.set),
    ]
    if options.epochs:
        command += ["--set", f"spec.template.training.epochs={options.epochs}"]
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "distillchain_cli", *command[1:]], stdout=subprocess.PIPE, check=False)
    wall_s = time.perf_counter() - started
    if done.returncode:
        return done.returncode
    status = ChainStatus.parse(done.stdout)
    manifests = [
        Manifest.parse((folder / "store/stages" / stage.digest / "manifest.json").read_bytes())
        for stage in status.stages
    ]
    print_rows(manifests)
    model_s = sum(manifest.run.model_s for manifest in manifests)
    print(f"\nwall {wall_s:.1f} s, in models {model_s:.1f} s, elsewhere {1 - model_s / wall_s:.1%}")
    print(json.dumps(manifests[-1].environment))
    return 0


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
