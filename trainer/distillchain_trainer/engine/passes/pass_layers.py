"""How the layers of a teacher compute in a long pass: as they are, or compiled where that is faster."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from distillchain_trainer.engine.device.compiled import can_compile, compile_layers, uncompile_layers
from distillchain_trainer.engine.device.modes import Mode, ModeTrial
from distillchain_trainer.engine.device.precision import device_of

log = logging.getLogger(__name__)

T = TypeVar("T")

# Of a pass that is left. Compiling takes up to 30 s, and a pass gains less than a training, because its products are
# larger: we expect about a tenth for a teacher of 8 billion parameters (one H100).
COMPILE_PAYS_S = 300.0
# Of each mode. Their median decides, so it must be more than twice the batches that compile: one for each of the first
# shapes (3 to 6 with real dynamo), and on a GPU the one before it, whose end is read after the next one is launched.
TIMED_BATCHES = 32


class PassLayers:
    """Tries the layers of one model on the batches of a pass, and keeps the faster way.

    Both compute the same, up to rounding. Every batch counts, so a trial wastes nothing but the time of compiling.

    Args:
        modes: in the order of trial; see `pass_modes`.
        tokens: of the whole pass, on this rank.
        decided: the mode, which is then not tried.
    """

    def __init__(self, model: Any, modes: tuple[Mode, ...], *, tokens: int = 0, decided: Mode | None = None) -> None:
        self._model = model
        self.tokens_left = tokens
        self._trial = ModeTrial(modes, decided=decided, timed_steps=TIMED_BATCHES, compile_pays_s=COMPILE_PAYS_S)
        self._entered = Mode.EAGER
        self._has_compiled = False

    @property
    def mode(self) -> Mode:
        """The mode of the next batch."""
        return self._trial.mode

    def run(self, launch: Callable[[], T]) -> T:
        """What `launch` returns, which computes a batch. If compiled layers fail, it is called again without them."""
        self._enter(self.mode)
        try:
            return launch()
        except Exception as error:  # whatever a compiler may raise, also too little memory
            if not self._entered.is_compiled:
                raise
            log.warning("compiled layers failed; the pass continues without them", extra={"why": repr(error)[:500]})
        # Not within `except`, where the error keeps the tensors of the batch alive.
        self._trial.failed(steps_left=self.tokens_left)
        self._enter(Mode.EAGER)
        return launch()

    def batch_done(self, elapsed_s: float, tokens: int) -> None:
        """Notes the time of a batch of so many tokens."""
        self.tokens_left -= tokens
        if self._trial.is_decided:
            return
        # A step of the trial is one token, because batches have different sizes.
        self._trial.step_done(elapsed_s / max(tokens, 1), steps_left=self.tokens_left)
        if self._trial.is_decided and len(self._trial.seconds) > 1:
            rates = {f"{mode}_tokens_per_second": round(1 / seconds) for mode, seconds in self._trial.seconds.items()}
            log.info("layers of the teacher chosen", extra={"mode": str(self.mode), **rates})

    def close(self) -> None:
        """Leaves the model, and the compiler, as they were."""
        self._enter(Mode.EAGER)
        if self._has_compiled:
            # It remembers shapes and counts compilations for each class of layers. A student may be of the same class.
            torch.compiler.reset()

    def _enter(self, mode: Mode) -> None:
        if mode.is_compiled != self._entered.is_compiled:
            (compile_layers if mode.is_compiled else uncompile_layers)(self._model)
        self._entered = mode
        self._has_compiled = self._has_compiled or mode.is_compiled


def pass_modes(model: Any) -> tuple[Mode, ...]:
    """The modes in which the layers of a model that is not split may compute in a pass."""
    # As for steps: compiling for a CPU would need a C++ compiler.
    return (Mode.EAGER, Mode.COMPILED) if device_of(model).type == "cuda" and can_compile() else (Mode.EAGER,)
