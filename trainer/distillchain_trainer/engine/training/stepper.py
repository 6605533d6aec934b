"""Makes the steps of a training in the fastest mode that works on this device."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from distillchain_trainer.engine.device.compiled import can_compile, compile_layers, uncompile_layers
from distillchain_trainer.engine.device.modes import Mode, ModeTrial
from distillchain_trainer.engine.training.captured import CapturedStep
from distillchain_trainer.engine.training.optimizer import set_learning_rate
from distillchain_trainer.engine.training.sharded_step import ShardedStep
from distillchain_trainer.engine.training.step import EagerStep, Work
from distillchain_trainer.engine.training.training_state import random_state, set_random_state
from distillchain_trainer.engine.training.widths import width_for, widths_up_to
from distillchain_trainer.errors import OutOfMemory, StopRequested

log = logging.getLogger(__name__)


class Stepper:
    """The steps of one training.

    Args:
        pads_freely: an answer does not depend on how far its batch is padded. Otherwise batches are padded to their
            longest row alone, which no mode but the eager one can do.
        decided: the mode of an earlier attempt.
    """

    def __init__(
        self, work: Work, micro_rows: int, *, pads_freely: bool, decided: Mode | None = None, recomputes: bool = False
    ) -> None:
        self.work = work
        self.eager = (ShardedStep if work.sharded else EagerStep)(work, micro_rows, pad=self._pad)
        if recomputes:
            self.eager.recompute()
        modes = available_modes(work, micro_rows, pads_freely=pads_freely)
        # One node may lack a compiler, and all ranks must try the same modes.
        lacking = work.world.any(*(mode not in modes for mode in Mode))
        shared = {mode for mode, is_lacking in zip(Mode, lacking, strict=True) if not is_lacking}
        self.trial = ModeTrial(tuple(mode for mode in modes if mode in shared), decided=decided)
        self._widths = widths_up_to(int(work.rows.lengths.max()))
        self._entered = Mode.EAGER
        self._captured: CapturedStep | None = None

    @property
    def decided_mode(self) -> Mode | None:
        """The mode for the rest of the training; None while modes are tried."""
        return self.trial.mode if self.trial.is_decided else None

    def step(self, batch: Sequence[int], rate: float, *, steps_left: int, stop: Callable[[], bool]) -> Tensor | None:
        """One optimizer step. Returns: its mean loss on the device; None: given up for a stop."""
        set_learning_rate(self.work.optimizer, rate)
        tries = not self.trial.is_decided
        started = self._now() if tries else 0.0
        mode = self.trial.mode
        loss, typical = self._in_mode(mode, batch, steps_left=steps_left, stop=stop)
        if tries and not self.work.world.is_alone and loss is not None:
            self._agree(mode, steps_left=steps_left)
        if tries and not self.trial.is_decided and loss is not None and mode == self.trial.mode:
            # Of the slowest rank, so that all choose the same mode.
            elapsed_s = self.work.world.longest(self._now() - started)
            self.trial.step_done(elapsed_s if typical else None, steps_left=steps_left)
        # Also where the last mode has failed.
        if tries and self.trial.is_decided:
            seconds = {f"{name}_ms": round(1000 * value, 3) for name, value in self.trial.seconds.items()}
            log.info("training mode chosen", extra={"mode": str(self.trial.mode), **seconds})
        return loss

    def _agree(self, mode: Mode, *, steps_left: int) -> None:
        """A mode that has failed on one rank counts as failed on all."""
        (failed,) = self.work.world.any(self.trial.mode != mode)
        if failed and self.trial.mode == mode:
            self.trial.failed(steps_left=steps_left)

    def _in_mode(
        self, mode: Mode, batch: Sequence[int], *, steps_left: int, stop: Callable[[], bool]
    ) -> tuple[Tensor | None, bool]:
        """Returns: the loss, and whether the step was typical of its mode."""
        if mode is Mode.EAGER:
            self._enter(mode)
            return self.eager.run(batch, stop=stop), True
        before = random_state() if self._may_fail(batch) else None
        try:
            self._enter(mode)
            return self._in_entered_mode(batch, stop)
        except (OutOfMemory, StopRequested):
            raise
        except Exception as error:  # whatever a compiler or a recording may raise: the eager step needs neither
            if before is None:
                raise
            log.warning(
                "training mode failed; continuing without it",
                extra={"mode": str(mode), "why": repr(_cause_of(error))[:500]},
            )
            self.trial.failed(steps_left=steps_left)
            set_random_state(before)
        # Not within `except`, where the error keeps the tensors of the failed step alive.
        self._enter(Mode.EAGER)
        return self.eager.run(batch, stop=stop), False

    def _in_entered_mode(self, batch: Sequence[int], stop: Callable[[], bool]) -> tuple[Tensor | None, bool]:
        if self._captured is None:
            return self.eager.run(batch, stop=stop), True
        done = self._captured.run(batch)
        return done.loss, done.replayed

    def _may_fail(self, batch: Sequence[int]) -> bool:
        """Whether this step is more than the replay of a graph."""
        return self._captured is None or not self._captured.has_graph_for(batch)

    def _enter(self, mode: Mode) -> None:
        if mode is self._entered:
            return
        if mode.is_compiled != self._entered.is_compiled:
            (compile_layers if mode.is_compiled else uncompile_layers)(self.work.model)
        # Graphs are never carried over: another mode may have freed the gradients that they write to.
        self._captured = None
        self.work.optimizer.zero_grad(set_to_none=True)
        if self.work.device.type == "cuda":
            # Captured steps run on a stream of their own, which cannot use what torch has reserved for another.
            torch.cuda.empty_cache()
        if mode.is_captured:
            size = self.work.training.batch_size
            if self.eager.micro_rows < size:
                raise ValueError(
                    f"a captured step takes {size} rows at a time, and memory holds {self.eager.micro_rows}"
                )
            self._captured = CapturedStep(self.work, size, widths=self._widths)
        self._entered = mode

    def _pad(self, longest: int) -> int:
        # Compiled code is compiled again for a new width.
        return width_for(longest, self._widths) if self._entered.is_compiled else longest

    def _now(self) -> float:
        # A GPU computes behind the program; only while modes are compared is it waited for.
        if self.work.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def _cause_of(error: BaseException) -> BaseException:
    """The first error: a recording that fails raises a second one when it is ended."""
    while error.__context__ is not None:
        error = error.__context__
    return error


def available_modes(work: Work, micro_rows: int, *, pads_freely: bool) -> tuple[Mode, ...]:
    """The modes that may work here, in the order of trial: what is cheap to try comes first."""
    # A CPU launches nothing, and compiling for it would need a C++ compiler.
    if work.device.type != "cuda" or not pads_freely or work.sharded:
        return (Mode.EAGER,)
    fits_one_pass = micro_rows >= work.training.batch_size and work.rows_device == work.device
    # Collectives are not recorded: a rank that fails would leave the others waiting in theirs.
    captured = (Mode.CAPTURED, Mode.COMPILED_CAPTURED) if work.world.is_alone and fits_one_pass else ()
    modes = (Mode.EAGER, *captured, Mode.COMPILED)
    return modes if can_compile() else tuple(mode for mode in modes if not mode.is_compiled)
