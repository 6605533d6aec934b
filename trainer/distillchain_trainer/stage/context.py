"""What every phase of a stage has at hand: the work order, the store, and ways to report, warn and stop."""

from __future__ import annotations

import contextlib
import datetime
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from distillchain_api.wire.answer import ProgressPhase
from distillchain_api.wire.work_order import WorkOrder
from distillchain_store.patience import patience_for_results, with_patience
from distillchain_store.store import Store
from distillchain_trainer.engine.ranks.world import ALONE, World
from distillchain_trainer.errors import StopRequested
from distillchain_trainer.signals import Signals
from distillchain_trainer.stage.progress import Reporter
from distillchain_trainer.stage_warnings import StageWarnings
from distillchain_trainer.tracking.tracking import Tracking, open_tracking


def utc_now() -> str:
    """RFC 3339, UTC."""
    # Z and not +00:00, as Kubernetes writes times.
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


@dataclass
class Context:
    """One attempt at one stage.

    Attributes:
        folder: for files in the making, shared by the processes of a node; empty at the start.
        world: the processes that carry out the attempt.
        fitting_rows: rows of a micro-batch, after memory was short for more; None: it was not.
        tracking: the trackers of the stage, once it trains; on rank 0 alone.
    """

    order: WorkOrder
    store: Store
    attempt: str
    folder: Path
    reporter: Reporter
    signals: Signals
    warnings: StageWarnings = field(default_factory=StageWarnings)
    world: World = ALONE
    fitting_rows: int | None = None
    tracking: Tracking = field(default_factory=Tracking)
    started_at: str = field(default_factory=utc_now)
    started_s: float = field(default_factory=time.monotonic)

    @property
    def is_sharded(self) -> bool:
        """Whether models are split over the processes."""
        return self.order.parallelism.sharding == "Full" and not self.world.is_alone

    @property
    def holds_weights(self) -> bool:
        """Whether this process has all weights of the student; of one that is split, rank 0 alone has them."""
        return self.world.is_main or not self.is_sharded

    @contextlib.contextmanager
    def tracked(self) -> Iterator[None]:
        """Within the block, the trackers of the work order run; they are closed when the stage fails or is stopped."""
        if self.world.is_main and not self.order.tracking.is_off:
            self.tracking = open_tracking(self.order, folder=self.scratch("tracking"))
        try:
            yield
        except BaseException as error:
            with self.signals.deferred():  # a second signal must not leave their processes behind
                self.tracking.stopped("interrupted" if isinstance(error, StopRequested) else "failed")
            raise

    @property
    def elapsed_s(self) -> float:
        """Seconds of this attempt so far."""
        return time.monotonic() - self.started_s

    def scratch(self, name: str) -> Path:
        """A folder for files in the making."""
        folder = self.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def patiently(self, *, stops: bool = False) -> contextlib.AbstractContextManager[None]:
        """Within the block, outages of the store are waited out for as long as a trained student is worth.

        A stop shortens the wait to what fits the grace period of a pod.

        Args:
            stops: another rank was asked to stop.
        """
        return with_patience(self.store, patience_for_results(lambda: stops or self.signals.requested))

    def batch_reporter(self, phase: ProgressPhase) -> Callable[[int, int], None]:
        """Reports rows that are done, of all, as progress of `phase`."""
        started = time.monotonic()

        def report(done: int, of: int) -> None:
            elapsed_s = max(time.monotonic() - started, 1e-9)
            rate, eta_s = done / elapsed_s, (of - done) * elapsed_s / max(done, 1)
            self.reporter.report(phase, done, of, examples_per_second=rate, eta_s=eta_s)

        return report
