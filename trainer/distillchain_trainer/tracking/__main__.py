"""The process of one tracker: reads messages on stdin and passes them on. Its client is imported here alone."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from typing import BinaryIO

from distillchain_store.opening import open_store
from distillchain_store.redaction import without_secrets
from distillchain_trainer.errors import first_line
from distillchain_trainer.tracking.messages import End, Flush, Point, Setup, Start, parse_message
from distillchain_trainer.tracking.process import FAULT_FILE
from distillchain_trainer.tracking.tracker import Tracker

ORPHAN_S = 20.0  # to close the run after the trainer has died


def main(setup: Setup) -> int:
    """Serves one tracker until the trainer has nothing more to say. Returns: an exit code."""
    # The trainer decides when this process ends: a stop of the whole pod comes to all processes.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    try:
        relay(open_tracker(setup), sys.stdin.buffer)
    except BaseException as error:  # every fault becomes one sentence, which the trainer shows to the user
        Path(setup.folder, FAULT_FILE).write_text(_describe(error), encoding="utf-8")
        raise
    return 0


def open_tracker(setup: Setup) -> Tracker:
    """The tracker that is set up. Raises: ImportError where its client is not installed."""
    folder = Path(setup.folder)
    if setup.tensor_board is not None:
        from distillchain_trainer.tracking.to_tensorboard import TensorBoardTracker

        address = setup.storage
        store = open_store(
            address.uri,
            endpoint_url=address.endpoint_url,
            region=address.region,
            encryption=address.encryption.put_fields if address.encryption else None,
        )
        return TensorBoardTracker(setup.tensor_board, store=store, folder=folder / "events")
    if setup.mlflow is not None:
        from distillchain_trainer.tracking.to_mlflow import MlflowTracker

        return MlflowTracker(setup.mlflow)
    assert setup.wandb is not None
    from distillchain_trainer.tracking.to_wandb import WandbTracker

    return WandbTracker(setup.wandb, folder=folder)


def relay(tracker: Tracker, stream: BinaryIO) -> None:
    """Passes messages on until the last one."""
    started = False
    for line in stream:
        match parse_message(line):
            case Start() as start:
                tracker.start(start)
                started = True
            case Point() as point:
                tracker.log(point)
            case Flush():
                tracker.flush()
            case End() as end:
                if started:
                    tracker.end(end.outcome, end.facts)
                return
    # The trainer died without a word. Nothing waits for this process any more, so it must end by itself.
    if started:
        watchdog = threading.Timer(ORPHAN_S, os._exit, [1])
        watchdog.daemon = True
        watchdog.start()
        tracker.end("interrupted", {})
        watchdog.cancel()


def _describe(error: BaseException) -> str:
    if isinstance(error, ModuleNotFoundError):
        return f"{error.name} is not installed; use an image with the extra `trackers` of distillchain"
    return without_secrets(f"{type(error).__name__}: {first_line(error)}")


if __name__ == "__main__":
    sys.exit(main(Setup.parse(sys.argv[1])))
