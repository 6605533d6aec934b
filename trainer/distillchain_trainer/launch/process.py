"""The trainer as a process: reads the work order, runs the stage in one or several processes, and answers."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from distillchain_api.wire.work_order import (
    ATTEMPT_ENV,
    CACHE_BYTES_ENV,
    CACHE_ENV,
    KEEP_TEXTS_ENV,
    NODE_ENV,
    RENDEZVOUS_ENV,
    TERMINATION_PATH_ENV,
    WORK_DIRECTORY_ENV,
    WORK_ORDER_ENV,
    WorkOrder,
)
from distillchain_store.errors import FULL
from distillchain_trainer import __version__
from distillchain_trainer.errors import WorkOrderInvalid
from distillchain_trainer.launch.ending import Ending, carry_out, committed
from distillchain_trainer.launch.environment import set_up_environment
from distillchain_trainer.launch.place import read_place
from distillchain_trainer.launch.termination import (
    DEFAULT_TERMINATION_PATH,
    clear_answer,
    write_answer,
    write_last_answer,
)
from distillchain_trainer.signals import Signals
from distillchain_trainer.stage.progress import Reporter
from distillchain_trainer.stage_warnings import StageWarnings

log = logging.getLogger("distillchain_trainer")

USAGE = f"""usage: python -m distillchain_trainer [--version]

Runs one stage of a DistillationChain, in as many processes as its work order says. It is configured by environment
variables alone:
  {WORK_ORDER_ENV}        the work order, JSON
  {ATTEMPT_ENV}           a name unique to this pod; empty: generated
  {TERMINATION_PATH_ENV}  file of the termination message; empty: {DEFAULT_TERMINATION_PATH}
  {WORK_DIRECTORY_ENV}    folder for files in the making; empty: a temporary one
  {CACHE_ENV}             folder for fetched models and data, shared by stages and pods; empty: none
  {CACHE_BYTES_ENV}       most bytes of that folder; empty: no limit
  {KEEP_TEXTS_ENV}        0: copy no validation text into store and report; empty: the few that the report shows
  {RENDEZVOUS_ENV}        host:port of node 0, for a stage on several nodes
  {NODE_ENV}           number of this node; Kubernetes sets it in the pods of an Indexed Job

Example: {WORK_ORDER_ENV}="$(cat order.json)" python -m distillchain_trainer
"""


def main(arguments: list[str], signals: Signals) -> int:
    """Runs one stage. Returns: the exit code of the contract."""
    if arguments == ["--version"]:
        sys.stdout.write(f"distillchain-trainer {__version__}\n")
        return 0
    if arguments:
        # Help that was asked for is a result and goes to stdout; after a wrong argument it goes to stderr.
        asked = arguments in (["--help"], ["-h"])
        (sys.stdout if asked else sys.stderr).write(USAGE)
        return 0 if asked else 64
    clear_answer()
    ending = carry_out(signals, functools.partial(_run, signals))
    write_last_answer(ending.answer)
    return ending.exit_code


def _run(signals: Signals, order: WorkOrder, progress: TextIO) -> Ending:
    named = os.environ.get(ATTEMPT_ENV, "")
    # A container that restarts within its pod must not write to the folder of the one before.
    attempt = f"{named}-{secrets.token_hex(3)}" if named else secrets.token_hex(6)
    place = read_place(order)
    with _work_folder() as folder:
        warnings = StageWarnings()
        set_up_environment(folder, warnings, processes=place.processes)
        fields = {"chain": order.chain, "stage": order.stage, "digest": order.digest, "attempt": attempt}
        if place.nodes * place.processes > 1:
            # Imported late: asyncio takes 40 ms, and most stages need one process.
            from distillchain_trainer.launch.launcher import launch

            log.info("launcher begins", extra={**fields, "node": place.node, "nodes": place.nodes})
            return launch(
                order,
                place,
                attempt=attempt,
                folder=folder,
                warnings=warnings.sentences,
                signals=signals,
                progress=progress,
            )
        # Only now, so that a stop can be reported with the stage's name and digest.
        signals.obey()
        log.info("stage begins", extra=fields)
        # Loads no torch: the environment, which torch reads once, is set up above.
        from distillchain_trainer.stage.run import run_stage

        reporter = Reporter(order.stage, progress)
        answer = run_stage(
            order,
            attempt=attempt,
            folder=folder,
            reporter=reporter,
            signals=signals,
            warnings=warnings,
            on_committed=write_answer,
        )
        return committed(answer)


@contextlib.contextmanager
def _work_folder() -> Iterator[Path]:
    """A folder for this process alone, deleted at the end."""
    parent = os.environ.get(WORK_DIRECTORY_ENV) or None
    try:
        if parent:
            Path(parent).mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix="stage-", dir=parent))
    except OSError as error:
        # A full disk has a failure class of its own, and without a parent folder the variable is not at fault.
        if error.errno in FULL or not parent:
            raise
        raise WorkOrderInvalid(
            f"{WORK_DIRECTORY_ENV}: {parent} cannot be created ({error.strerror}); name a folder that the "
            "trainer's user may write to"
        ) from error
    try:
        yield folder
    finally:
        # A file that cannot be deleted must not replace the stage's answer by an error.
        shutil.rmtree(folder, ignore_errors=True)
