"""Runs chains by `distillchain run`, several at a time, so that no two train the same stage."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from distillchain_api.layout import manifest_key

from .chains import Sizes, StudyChain

LOOK_S = 0.2
STOP_S = 15.0  # a stopped trainer saves its state in this time


@dataclass(frozen=True)
class Ended:
    """A chain that has ended."""

    chain: StudyChain
    seconds: float
    exit_code: int
    log: Path


def open_stages(folder: Path, chain: StudyChain) -> set[str]:
    """Digests of the stages of a chain that are not committed."""
    store = folder / "store"
    return {stage.digest for stage in chain.plan.stages if not (store / manifest_key(stage.digest)).exists()}


def run_chains(folder: Path, chains: Sequence[StudyChain], *, parallel: int, budget_s: float | None) -> Iterator[Ended]:
    """Runs chains that have an open stage, and returns each when it has ended.

    Args:
        budget_s: after it, running chains are stopped and no other starts; they continue when the study is run again.
    """
    until = None if budget_s is None else time.monotonic() + budget_s
    waiting = [chain for chain in chains if open_stages(folder, chain)]
    running: dict[str, _Running] = {}
    try:
        while waiting or running:
            for name, each in list(running.items()):
                if (code := each.process.poll()) is not None:
                    del running[name]
                    yield Ended(each.chain, time.monotonic() - each.began, code, each.log)
            if until is not None and time.monotonic() > until:
                break
            _start_ready(folder, waiting, running, parallel)
            time.sleep(LOOK_S)
    finally:
        _stop(running)


@dataclass(frozen=True)
class _Running:
    chain: StudyChain
    process: subprocess.Popen[bytes]
    began: float
    log: Path


def _start_ready(folder: Path, waiting: list[StudyChain], running: dict[str, _Running], parallel: int) -> None:
    """Starts the next chains, none of which shares an open stage with one that runs."""
    busy = set().union(*(open_stages(folder, each.chain) for each in running.values()))
    for chain in list(waiting):
        if len(running) >= parallel:
            return
        wanted = open_stages(folder, chain)
        if wanted & busy:
            continue
        waiting.remove(chain)
        if wanted:  # else another chain has trained all of it meanwhile
            running[chain.name] = _start(folder, chain, parallel)
            busy |= wanted


def _start(folder: Path, chain: StudyChain, parallel: int) -> _Running:
    file, log = folder / "chains" / f"{chain.name}.yaml", folder / "logs" / f"{chain.name}.log"
    for path in (file, log):
        path.parent.mkdir(exist_ok=True)
    file.write_text(yaml.safe_dump(chain.document, sort_keys=False))
    environment = dict(os.environ)
    if parallel > 1:
        # Several trainers share the CPUs, and each would use all of them.
        threads = max(1, (os.cpu_count() or 1) // parallel)
        environment |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "distillchain_cli", "run", str(file), "-o", "json"],
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
        )
    return _Running(chain, process, time.monotonic(), log)


def _stop(running: dict[str, _Running]) -> None:
    for each in running.values():
        each.process.send_signal(signal.SIGINT)
    until = time.monotonic() + STOP_S
    for each in running.values():
        try:
            each.process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            each.process.kill()
            each.process.wait()


def same_sizes(folder: Path, sizes: Sizes) -> bool:
    """Whether the folder belongs to a study of as many rows; notes them in a new one. More seeds may follow later."""
    path = folder / "sizes.json"
    kept = {name: getattr(sizes, name) for name in ("rows", "transfer_rows", "validation_rows", "passes", "batch_size")}
    text = json.dumps(kept)
    if not path.exists():
        path.write_text(text)
    return path.read_text() == text
