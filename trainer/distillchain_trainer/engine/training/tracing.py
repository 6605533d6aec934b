"""A profiler trace of some training steps, on demand: what the device computed, and what it waited for."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

log = logging.getLogger(__name__)

STEPS = 10  # of one trace: a few MB for a small model


class StepTracer:
    """Traces STEPS steps after each request.

    Args:
        requested: whether a trace was asked for since the last call.
        keep: gets the trace, a gzipped file for chrome://tracing and perfetto.dev, and the step that it ends with.
    """

    def __init__(self, requested: Callable[[], bool], keep: Callable[[Path, int], None], folder: Path) -> None:
        self._requested, self._keep, self._folder = requested, keep, folder
        self._profile: profile | None = None
        self._left = 0

    def before_step(self) -> None:
        """Begins a trace if one was asked for."""
        if self._profile is not None or not self._requested():
            return
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
        begun = profile(activities=activities)
        try:
            begun.start()
        except Exception:  # of the profiler, which may be in use: none is worth the training
            log.warning("the trace could not be begun", exc_info=True)
            return
        self._profile, self._left = begun, STEPS
        log.info("tracing the next steps", extra={"steps": STEPS})

    def after_step(self, step: int) -> None:
        """Ends the trace after its last step."""
        if self._profile is None:
            return
        self._left -= 1
        if not self._left:
            self.finish(step)

    def finish(self, step: int) -> None:
        """Ends a trace, also one with fewer steps. If it cannot be kept, that is a warning: the training continues."""
        traced, self._profile = self._profile, None
        if traced is None:
            return
        path = self._folder / f"trace-{step}.json.gz"
        try:
            traced.stop()
            traced.export_chrome_trace(str(path))
            self._keep(path, step)
        except Exception:  # of the profiler, the disk or the store: none is worth the training
            log.warning("the trace could not be kept", exc_info=True)
        path.unlink(missing_ok=True)
