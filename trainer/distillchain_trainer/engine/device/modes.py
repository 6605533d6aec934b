"""How a training step is executed, and the trial that finds the fastest way. Pure: knows no torch and no model."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from enum import StrEnum

TIMED_STEPS = 8
LONGEST_TRIAL_STEPS = 60  # of one mode: a new width is captured at its second step, and those steps are not timed
CAPTURE_PAYS_S = 3.0  # of training that is left; capturing one width took 0.3 s (one H100, torch 2.11)
COMPILE_PAYS_S = 60.0  # compiling one layer of a transformer took 5 to 30 s (one H100, torch 2.11)


class Mode(StrEnum):
    """How a step is executed. All modes compute the same, up to rounding and the random masks of dropout."""

    EAGER = "eager"
    CAPTURED = "captured"
    """The whole step as one CUDA graph for each width of batches: no time between kernels."""
    COMPILED = "compiled"
    """Each layer by torch.compile: fewer and faster kernels."""
    COMPILED_CAPTURED = "compiled+captured"

    @property
    def is_captured(self) -> bool:
        """Whether steps are replayed from CUDA graphs."""
        return self in (Mode.CAPTURED, Mode.COMPILED_CAPTURED)

    @property
    def is_compiled(self) -> bool:
        """Whether layers are compiled."""
        return self in (Mode.COMPILED, Mode.COMPILED_CAPTURED)


class ModeTrial:
    """Tries one mode after the other on real steps and keeps the fastest.

    Every step trains, so a trial wastes nothing but the slower modes' time.

    Args:
        available: modes in the order of trial; the first must always work.
        decided: by an earlier attempt at the same training, which then continues in this mode.
        timed_steps: of each mode; their median counts.
        compile_pays_s: seconds of work that must be left for a mode to be tried that is compiled.
    """

    def __init__(
        self,
        available: tuple[Mode, ...],
        *,
        decided: Mode | None = None,
        timed_steps: int = TIMED_STEPS,
        compile_pays_s: float = COMPILE_PAYS_S,
    ) -> None:
        self._timed_steps, self._compile_pays_s = timed_steps, compile_pays_s
        self._untried = list(available[1:])
        self._mode = available[0]
        self._times: dict[Mode, list[float]] = {self._mode: []}
        self._steps = 0
        self._decided = len(available) == 1
        if decided in available:
            self._mode, self._decided = decided, True

    @property
    def mode(self) -> Mode:
        """The mode of the next step."""
        return self._mode

    @property
    def is_decided(self) -> bool:
        """Whether the trial is over."""
        return self._decided

    @property
    def seconds(self) -> Mapping[Mode, float]:
        """Median time of a step in each mode that was tried."""
        return {mode: statistics.median(times) for mode, times in self._times.items() if times}

    def step_done(self, elapsed_s: float | None, *, steps_left: int) -> None:
        """Notes a step in the present mode.

        Args:
            elapsed_s: None: the step was not typical of the mode, such as the first of a new width.
        """
        if self._decided:
            return
        self._steps += 1
        if elapsed_s is not None:
            self._times[self._mode].append(elapsed_s)
        if len(self._times[self._mode]) >= self._timed_steps or self._steps >= LONGEST_TRIAL_STEPS:
            self._next(steps_left)

    def failed(self, *, steps_left: int) -> None:
        """The present mode does not work here: it is never used again, nor a mode that builds on it."""
        failed = self._mode
        self._times.pop(failed, None)
        self._untried = [mode for mode in self._untried if not _builds_on(mode, failed)]
        if not self._times:
            self._times[Mode.EAGER] = []
        self._next(steps_left)

    def _next(self, steps_left: int) -> None:
        self._steps = 0
        fastest_s = min(self.seconds.values(), default=0.0)
        while self._untried:
            mode = self._untried.pop(0)
            pays_s = self._compile_pays_s if mode.is_compiled else CAPTURE_PAYS_S
            # Captured, compiled code is never slower, so it is tried alone only where that failed.
            surpassed = mode is Mode.COMPILED and Mode.COMPILED_CAPTURED in self._times
            if surpassed or fastest_s * steps_left < pays_s:
                continue
            self._mode = mode
            self._times[mode] = []
            return
        self._mode = min(self.seconds, key=lambda mode: self.seconds[mode], default=Mode.EAGER)
        self._decided = True


def _builds_on(mode: Mode, failed: Mode) -> bool:
    """Whether a mode does all that the failed one does. Where both together fail, each may work alone."""
    return (mode.is_captured or not failed.is_captured) and (mode.is_compiled or not failed.is_compiled)
