"""How a trainer ends: every result and every exception becomes an answer and an exit code."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TextIO

from distillchain_api.failures import EXIT_COMMITTED, EXIT_INTERRUPTED, FailureClass
from distillchain_api.faults import BadDocument
from distillchain_api.wire.answer import Committed, Failed, Interrupted, fit
from distillchain_api.wire.work_order import WORK_ORDER_ENV, WorkOrder
from distillchain_store.redaction import without_secrets
from distillchain_trainer.errors import (
    MicroBatchTooLarge,
    StopRequested,
    WorkOrderInvalid,
    first_line,
    is_peer_failure,
    translate_unforeseen,
)
from distillchain_trainer.launch.streams import set_up_streams
from distillchain_trainer.signals import Signals

log = logging.getLogger("distillchain_trainer")

CRASH_EXIT_CODE = 70
STOPPED = "interrupted"


@dataclass(frozen=True)
class Ending:
    """The answer and the exit code of one process.

    Attributes:
        peers_lost: what this rank knows about ranks that failed or did not answer; empty: it ended by itself.
        smaller_rows: of a failure, rows of a micro-batch with which all ranks can try again.
    """

    answer: Committed | Failed | Interrupted
    exit_code: int
    peers_lost: str = ""
    smaller_rows: int | None = None


def committed(answer: Committed) -> Ending:
    """The ending of a stage that is committed."""
    return Ending(answer, EXIT_COMMITTED)


def carry_out(signals: Signals, work: Callable[[WorkOrder, TextIO], Ending], *, rank: int | None = None) -> Ending:
    """Sets up the streams, reads the work order and does the work. Never raises.

    Args:
        work: gets the work order and the stream of progress lines.
        rank: number of this process, for its log lines; None: it is the only one.
    """
    order: WorkOrder | None = None
    try:
        progress = set_up_streams(rank)
        order = read_work_order()
        ending = work(order, progress)
        # A signal from here on must not turn the answer into Interrupted.
        signals.defer_for_good()
    except BaseException as error:  # every ending has an answer
        # A second signal must not interrupt the answer to the first.
        signals.defer_for_good()
        return _of_exception(order, error, signals, rank)
    return ending


def _of_exception(order: WorkOrder | None, error: BaseException, signals: Signals, rank: int | None) -> Ending:
    # One process has no peers: the same words then come from another library, and the error is its own.
    if rank is not None and is_peer_failure(error):
        # Ranks do not stop at the same moment. The last ones may find that the others are gone already.
        return interrupted(order, signals.saved_step) if signals.requested else _peers_lost(order, error, signals)
    if isinstance(error, StopRequested):
        # A stop outside the training loop carries no step, so the one of the newest saved state counts.
        return interrupted(order, max(error.step, signals.saved_step))
    ending = failed(order, error)
    return replace(ending, smaller_rows=error.rows) if isinstance(error, MicroBatchTooLarge) else ending


def read_work_order() -> WorkOrder:
    """Raises: WorkOrderInvalid."""
    text = os.environ.get(WORK_ORDER_ENV)
    if not text:
        raise WorkOrderInvalid(f"{WORK_ORDER_ENV} is not set; expected a work order as JSON")
    try:
        return WorkOrder.parse(text)
    except BadDocument as error:
        faults = "; ".join(str(fault) for fault in error.faults)
        raise WorkOrderInvalid(f"{WORK_ORDER_ENV}: {faults}") from error


def interrupted(order: WorkOrder | None, step: int, *, why: str = STOPPED) -> Ending:
    """The ending of a stage that continues in the next attempt; `step` 0: no state is saved."""
    # A stop saves a state before it ends a training. Other interruptions cannot, so they may lose a training.
    without = "this attempt had not started to train" if why == STOPPED else "no state of this attempt is saved"
    where = (
        f"its state at step {step} is saved, and the next attempt continues from it"
        if step
        else f"{without}, and the next one starts from what is in the store"
    )
    log.info("stage interrupted", extra={"step": step, "why": why})
    answer = Interrupted(
        stage=order.stage if order else "",
        digest=order.digest if order else "",
        step=step,
        message=fit(without_secrets(f"{why}; {where}")),
    )
    return Ending(answer, EXIT_INTERRUPTED)


def failed(order: WorkOrder | None, error: BaseException) -> Ending:
    """The ending after an exception."""
    known = translate_unforeseen(error)
    if known is not None and known.failure_class is not FailureClass.CRASHED:
        # A known failure is explained by its message. A traceback would hide it, and is left to the level DEBUG.
        log.error("stage failed: %s", known, extra={"failure_class": known.failure_class})
        log.debug("cause", exc_info=error)
    else:
        log.error("stage crashed", exc_info=error)
    sentence = (str(error).strip().splitlines() or [""])[0]
    message = str(known) if known is not None else f"{type(error).__name__}: {sentence}"
    failure_class = known.failure_class if known else FailureClass.CRASHED
    return failure(order, failure_class, message, known.exit_code if known is not None else CRASH_EXIT_CODE)


def failure(order: WorkOrder | None, failure_class: FailureClass, message: str, exit_code: int) -> Ending:
    """The ending of a failed stage."""
    answer = Failed(
        stage=order.stage if order else "",
        digest=order.digest if order else "",
        failure_class=failure_class,
        message=fit(without_secrets(message)),
    )
    return Ending(answer, exit_code)


def _peers_lost(order: WorkOrder | None, error: BaseException, signals: Signals) -> Ending:
    # With the traceback: it shows where this rank was.
    log.warning("the other ranks are lost", exc_info=error)
    text = without_secrets(first_line(error))
    ending = interrupted(order, signals.saved_step, why=f"the other ranks are lost: {text}")
    return Ending(ending.answer, ending.exit_code, peers_lost=text)
