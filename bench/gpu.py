"""Our trainer beside reference loops on one GPU: small students, teacher logits, and a model of BERT-large's size.

    python bench/gpu.py --only tiny,femto,logits,large   # 6 to 8 minutes on an H100
    python bench/gpu.py                      # all parts; ends within 8 minutes, and names what was not measured
    python bench/gpu.py --only tiny,femto    # some parts of tiny, femto, logits, large and causal
    python bench/gpu.py --only causal        # a 1B student and an 8B teacher's top-k pass, within 4 minutes
    python bench/gpu.py --small              # tiny sizes, also without a GPU: shows that the bench works

Needs torch, transformers, this project (installed, or its folders in PYTHONPATH), and no network: models, tokenizer
and data are made up. Prints one JSON object per result as soon as it is known, then a table; progress goes to stderr.

References are plain loops of torch (gpu_bench/loops.py): eager; the whole step in a CUDA graph for each width; and
torch.compile. Ours are real stages in real processes on a file:// store. The rate of ours counts from the line of the
log that names the chosen mode to the last progress line. The stages of the large model are killed once that took 12 s.

On a machine without the project, with its wheels or those it needs in .whl/:

    python3 -m pip install --no-index --no-deps --target /tmp/site .whl/*.whl
    export PYTHONUNBUFFERED=1 PYTHONPATH=api:store:trainer:report:/tmp/site
    python3 bench/gpu.py | tee gpu.log

Add the table to bench/LOG.md with date, card and versions (the first result has them).
"""

from __future__ import annotations

import argparse
import compileall
import dataclasses
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from gpu_bench.results import Result, table
from gpu_bench.sizes import Sizes, sizes_of

if TYPE_CHECKING:
    from gpu_bench.stages import StageRun

PARTS = ("tiny", "femto", "logits", "large", "causal")
CAUSAL = ("causal-student", "causal-teacher")  # one process each: the second needs the memory of the first
PACKAGES = ("distillchain_api", "distillchain_store", "distillchain_report", "distillchain_trainer")
CHILD_LIMIT_S = 150.0
STUDENT_LIMIT_S = 75.0  # at 3,900 examples/s, six epochs would take 104 s; the rate is known long before
LARGE_LIMIT_S = 150.0


def main() -> int:
    options = parse_options()
    sizes = sizes_of(small=options.small)
    if options.large_batches:
        batches = tuple(int(batch) for batch in options.large_batches.split(","))
        sizes = dataclasses.replace(sizes, large_batches=batches)
    if options.child:
        from gpu_bench.children import Job, run_child

        run_child(options.child.split(","), Job(sizes, Path(options.folder), options.whole_model))
        return 0
    if options.small:
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # more threads make models of this size slower
    compile_packages()
    folder = Path(tempfile.mkdtemp(prefix="gpu-bench-", dir=options.folder))
    bench = Bench(sizes, folder, options)
    try:
        bench.run(options.only)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print("\n" + table(bench.results, is_small=options.small), flush=True)
    return 1 if any("error" in result for result in bench.results) else 0


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS), help=f"parts, separated by commas ({','.join(PARTS)})")
    parser.add_argument("--small", action="store_true", help="tiny sizes; also on a CPU, in less than a minute")
    parser.add_argument(
        "--budget-s", type=float, default=460, help="stop everything after so many seconds (%(default)s)"
    )
    parser.add_argument("--epochs", type=int, help="of the small students' stages; default: 6, or 2 with --small")
    parser.add_argument("--large-batches", metavar="N,N", help="of the large model; default: 32,128")
    parser.add_argument("--whole-model", action="store_true", help="compile the large reference as one graph (minutes)")
    parser.add_argument("--folder", help="where the temporary folder is made; needs 10 GB for part large")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.only = options.only.split(",")
    if unknown := set(options.only) - set(PARTS):
        parser.error(f"--only: got {', '.join(sorted(unknown))}, expected some of {', '.join(PARTS)}")
    return options


def compile_packages() -> None:
    """As the trainer's image has them: otherwise the first stage would also compile modules."""
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        for path in spec.submodule_search_locations or () if spec else ():
            compileall.compile_dir(path, quiet=2)


class Bench:
    """Runs parts and keeps their results. A part that fails has an error as its result, and the next one runs."""

    def __init__(self, sizes: Sizes, folder: Path, options: argparse.Namespace) -> None:
        self.sizes, self.folder, self.options = sizes, folder, options
        self.results: list[Result] = []
        self.began = time.monotonic()
        self.logits_precisions: set[str] = set()
        self.finished: set[str] = set()

    def run(self, parts: list[str]) -> None:
        """Runs the chosen parts: first the references of the small students, in one process, then each part's rest."""
        chosen = [part for part in PARTS if part in parts]
        students = [part for part in chosen if part in ("tiny", "femto")]
        first = ["machine" if set(chosen) <= {"large", "causal"} else "prepare", *students]
        if self.options.small and "large" in chosen:
            first.append("large")  # most of the time of a small bench is the start of processes
        self.references(first)
        for part in chosen:
            if part == "causal":
                # Most of the time of a small bench is the start of processes.
                for children in [[*CAUSAL]] if self.options.small else [[one] for one in CAUSAL]:
                    self.child(children)
                continue
            if part == "large" and part not in first:
                self.references([part])
            for build in self.stages_of(part):
                self.stage(part, build)

    def references(self, parts: list[str]) -> None:
        """Data, checkpoints and reference loops of some parts in one process. If it fails, its rest runs one by one."""
        if self.child(parts) or len(parts) == 1:
            return
        for part in parts:
            if part not in self.finished:
                self.child([part])

    def child(self, parts: list[str]) -> bool:
        """Runs a process of gpu_bench/children.py. Returns: whether it did not fail."""
        shown = ", ".join(parts)
        if self.is_late(shown):
            return True
        self.say(f"{shown}: data and reference loops")
        command = [sys.executable, __file__, "--child", ",".join(parts), "--folder", str(self.folder)]
        command += [f"--{name}" for name in ("small", "whole-model") if getattr(self.options, name.replace("-", "_"))]
        command += ["--large-batches", ",".join(str(batch) for batch in self.sizes.large_batches)]
        try:
            code = self._read_child(command)
            error = f"the process ended with exit code {code}; see stderr" if code else ""
        except Exception:  # whatever happens to one part, the others are measured
            error = traceback.format_exc(limit=3)
        if error:
            self.add({"part": shown, "who": "reference", "error": error})
        return not error

    def _read_child(self, command: list[str]) -> int:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        # In a thread, because a child that hangs writes no line after which the time could be checked.
        timer = threading.Timer(self.seconds_for(CHILD_LIMIT_S), process.kill)
        timer.start()
        try:
            for line in process.stdout:
                result = json.loads(line)
                if result["who"] == "child":
                    self.finished.add(result["part"])
                else:
                    self.add(result)
            return process.wait()
        finally:
            timer.cancel()
            process.kill()

    def stages_of(self, part: str) -> Iterator[Callable[[], StageRun]]:
        """The stages of ours, each built when it is run."""
        from gpu_bench.stages import large_stage, student_stage

        if part == "large":
            for batch in self.sizes.large_batches:
                yield partial(
                    large_stage, self.sizes, self.folder, batch=batch, limit_s=self.seconds_for(LARGE_LIMIT_S)
                )
            return
        for precision in self.sizes.precisions:
            if part == "logits" and precision in self.logits_precisions:
                continue  # measured by a student's stage
            yield partial(
                student_stage,
                "femto" if part == "logits" else part,
                self.sizes,
                self.folder,
                precision=precision,
                epochs=1 if part == "logits" else self.options.epochs or self.sizes.epochs,
                final=part == "femto" and precision == "float32",
                limit_s=self.seconds_for(STUDENT_LIMIT_S),
            )

    def stage(self, part: str, build: Callable[[], StageRun]) -> None:
        from gpu_bench.stages import run_stage

        if self.is_late(part):
            return
        try:
            run = build()
            self.say(f"{part}: our stage, {run.precision}, batch {run.batch}")
            for result in run_stage(run, self.sizes, self.folder):
                if part == "logits" and result["part"] != "logits" and "error" not in result:
                    continue  # a stage that only shows the rate of its teacher
                if result["part"] == "logits":
                    self.logits_precisions.add(result["precision"])
                self.add(result)
        except Exception:  # whatever happens to one part, the others are measured
            self.add({"part": part, "who": "ours", "error": traceback.format_exc(limit=3)})

    def seconds_for(self, most: float) -> float:
        """How long something may take that starts now."""
        return min(most, self.began + float(self.options.budget_s) - time.monotonic())

    def is_late(self, part: str) -> bool:
        late = self.seconds_for(1.0) < 1.0
        if late:
            self.add({"part": part, "who": "ours", "error": "not run: --budget-s is used up"})
        return late

    def add(self, result: Result) -> None:
        self.results.append(result)
        print(json.dumps(result), flush=True)

    def say(self, text: str) -> None:
        print(f"[{time.monotonic() - self.began:5.0f} s] {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
