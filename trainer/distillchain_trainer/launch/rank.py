"""One rank of a stage that several processes train: `python -m distillchain_trainer.launch`, for the launcher alone.

Runs the stage as a single process would, but leaves its answer in a file for the launcher.
"""

from __future__ import annotations

import ctypes
import faulthandler
import functools
import logging
import os
import signal
import sys
from pathlib import Path
from typing import TextIO

from distillchain_api.wire.work_order import WorkOrder
from distillchain_trainer.launch.ending import Ending, carry_out, committed
from distillchain_trainer.launch.handover import RANK_ENV, RankEnd, RankStart
from distillchain_trainer.launch.termination import write_answer
from distillchain_trainer.signals import Signals
from distillchain_trainer.stage.progress import Reporter
from distillchain_trainer.stage_warnings import StageWarnings

log = logging.getLogger(__name__)

PR_SET_PDEATHSIG = 1  # linux/prctl.h
STACK_SIGNAL = signal.SIGUSR2  # asks a rank for the Python stack of all its threads


def main(signals: Signals) -> int:
    """Runs the stage as rank RANK. Returns: the exit code of the contract."""
    rank, start = int(os.environ["RANK"]), RankStart.parse(os.environ[RANK_ENV])
    _end_with(start.launcher)
    # A rank that hangs in a collective is killed; its stack shows where.
    faulthandler.enable()
    faulthandler.register(STACK_SIGNAL, all_threads=True)
    ending = carry_out(signals, functools.partial(_run, start, rank, signals), rank=rank)
    try:
        RankEnd.of(ending).write(Path(start.end))
    except OSError:  # a full disk, most likely: the exit code still says how the rank ended
        log.exception("the ending of this rank could not be written; it is: %s", ending.answer.to_json())
    return ending.exit_code


def _run(start: RankStart, rank: int, signals: Signals, order: WorkOrder, progress: TextIO) -> Ending:
    signals.obey()
    # Imported late, so that a stop while libraries load is noticed.
    from distillchain_trainer.stage.run import run_stage

    answer = run_stage(
        order,
        attempt=start.attempt,
        folder=Path(start.folder),
        reporter=Reporter(order.stage, progress if rank == 0 else None),
        signals=signals,
        warnings=StageWarnings(start.warnings),
        on_committed=write_answer,
        fitting_rows=start.fitting_rows,
    )
    return committed(answer)


def _end_with(launcher: int) -> None:
    """Without its launcher a rank could be neither stopped nor heard. Linux only (as in `distillchain run`)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != launcher:  # it died before the line above took effect
            sys.exit(1)
