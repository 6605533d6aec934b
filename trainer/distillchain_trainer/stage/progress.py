"""Progress lines on stdout: one JSON object per line, about one per second, typed in distillchain_api.wire."""

from __future__ import annotations

import time
from typing import TextIO

from distillchain_api.wire.answer import Progress, ProgressPhase

INTERVAL_S = 1.0  # more lines would only fill kubectl logs and the kubelet's log files


class Reporter:
    """Writes the progress lines of one stage."""

    def __init__(self, stage: str, stream: TextIO | None) -> None:
        self._stage = stage
        self._stream = stream
        self._last_s = 0.0
        self._phase: ProgressPhase | None = None

    def report(
        self,
        phase: ProgressPhase,
        step: int,
        of: int,
        *,
        epoch: float | None = None,
        loss: float | None = None,
        examples_per_second: float | None = None,
        eta_s: float | None = None,
    ) -> None:
        """Writes a line, unless the phase had one within INTERVAL_S; its first and last are always written."""
        now = time.monotonic()
        if phase == self._phase and step < of and now - self._last_s < INTERVAL_S:
            return
        self._phase, self._last_s = phase, now
        line = Progress(
            stage=self._stage,
            phase=phase,
            step=step,
            of=of,
            epoch=_rounded(epoch),
            loss=_rounded(loss),
            examples_per_second=_rounded(examples_per_second),
            eta_s=_rounded(eta_s),
        )
        if self._stream is not None:
            self._stream.write(line.to_json() + "\n")
            # stdout of a pod is a pipe, and Python would hold lines back until a block is full.
            self._stream.flush()


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
