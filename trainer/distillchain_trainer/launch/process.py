"""The trainer as a process: reads the work order, runs the stage and answers, with an exit code for every ending."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn, TextIO

from distillchain_api.failures import EXIT_COMMITTED, EXIT_INTERRUPTED, FailureClass
from distillchain_api.faults import BadDocument
from distillchain_api.wire.answer import Committed, Failed, Interrupted, fit
from distillchain_api.wire.work_order import (
    ATTEMPT_ENV,
    KEEP_TEXTS_ENV,
    TERMINATION_PATH_ENV,
    WORK_DIRECTORY_ENV,
    WORK_ORDER_ENV,
    WorkOrder,
)
from distillchain_store.errors import FULL
from distillchain_store.redaction import without_secrets
from distillchain_trainer import __version__
from distillchain_trainer.errors import StopRequested, WorkOrderInvalid, translate_unforeseen
from distillchain_trainer.launch.environment import set_up_environment
from distillchain_trainer.launch.streams import set_up_streams
from distillchain_trainer.launch.termination import DEFAULT_TERMINATION_PATH, write_answer
from distillchain_trainer.signals import Signals
from distillchain_trainer.stage.progress import Reporter
from distillchain_trainer.stage_warnings import StageWarnings

log = logging.getLogger("distillchain_trainer")

CRASH_EXIT_CODE = 70
USAGE = f"""usage: python -m distillchain_trainer [--version]

Runs one stage of a DistillationChain. It is configured by environment variables alone:
  {WORK_ORDER_ENV}        the work order, JSON
  {ATTEMPT_ENV}           a name unique to this pod; empty: generated
  {TERMINATION_PATH_ENV}  file of the termination message; empty: {DEFAULT_TERMINATION_PATH}
  {WORK_DIRECTORY_ENV}    folder for files in the making; empty: a temporary one
  {KEEP_TEXTS_ENV}        0: copy no validation text into store and report; empty: the few that the report shows

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
    answer: Committed | Failed | Interrupted
    order: WorkOrder | None = None
    try:
        progress = set_up_streams()
        order = _read_work_order()
        # Only now, so that a stop can be reported with the stage's name and digest.
        signals.obey()
        answer, code = _run(order, signals, progress), EXIT_COMMITTED
        # The stage is committed. A signal from here on must not turn the answer into Interrupted.
        signals.defer_for_good()
    except StopRequested as stop:
        # A second signal must not interrupt the answer to the first.
        signals.defer_for_good()
        # A stop outside the training loop carries no step, so the one of the newest saved state counts.
        answer, code = _interrupted(order, max(stop.step, signals.saved_step)), EXIT_INTERRUPTED
    except BaseException as error:  # every ending has an answer
        signals.defer_for_good()
        answer, code = _failed(order, error)
    write_answer(answer)
    return code


def _run(order: WorkOrder, signals: Signals, progress: TextIO) -> Committed:
    # Loads no torch yet: the environment, which torch reads once, is set up below.
    from distillchain_trainer.stage.run import run_stage

    named = os.environ.get(ATTEMPT_ENV, "")
    # A container that restarts within its pod must not write to the folder of the one before.
    attempt = f"{named}-{secrets.token_hex(3)}" if named else secrets.token_hex(6)
    with _work_folder() as folder:
        warnings = StageWarnings()
        set_up_environment(folder, warnings)
        log.info(
            "stage begins",
            extra={"chain": order.chain, "stage": order.stage, "digest": order.digest, "attempt": attempt},
        )
        return run_stage(
            order,
            attempt=attempt,
            folder=folder,
            reporter=Reporter(order.stage, progress),
            signals=signals,
            warnings=warnings,
        )


def _read_work_order() -> WorkOrder:
    text = os.environ.get(WORK_ORDER_ENV)
    if not text:
        raise WorkOrderInvalid(f"{WORK_ORDER_ENV} is not set; expected a work order as JSON")
    try:
        return WorkOrder.parse(text)
    except BadDocument as error:
        faults = "; ".join(str(fault) for fault in error.faults)
        raise WorkOrderInvalid(f"{WORK_ORDER_ENV}: {faults}") from error


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


def _interrupted(order: WorkOrder | None, step: int) -> Interrupted:
    where = (
        f"its state at step {step} is saved, and the next attempt continues from it"
        if step
        else "this attempt had not started to train, and the next one starts from what is in the store"
    )
    log.info("stopped from outside", extra={"step": step})
    return Interrupted(
        stage=order.stage if order else "",
        digest=order.digest if order else "",
        step=step,
        message=f"stopped from outside; {where}",
    )


def _failed(order: WorkOrder | None, error: BaseException) -> tuple[Failed, int]:
    known = translate_unforeseen(error)
    if known is not None and known.failure_class is not FailureClass.CRASHED:
        # A known failure is explained by its message. A traceback would hide it, and is left to the level DEBUG.
        log.error("stage failed: %s", known, extra={"failure_class": known.failure_class})
        log.debug("cause", exc_info=error)
    else:
        log.error("stage crashed", exc_info=error)
    sentence = (str(error).strip().splitlines() or [""])[0]
    message = str(known) if known is not None else f"{type(error).__name__}: {sentence}"
    failed = Failed(
        stage=order.stage if order else "",
        digest=order.digest if order else "",
        failure_class=known.failure_class if known else FailureClass.CRASHED,
        message=fit(without_secrets(message)),
    )
    return failed, known.exit_code if known is not None else CRASH_EXIT_CODE


def leave(code: int) -> NoReturn:
    """Ends the process at once: everything is written, and an orderly exit of torch takes another second."""
    # os._exit flushes nothing.
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
