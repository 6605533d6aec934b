"""What the training loop itself keeps in a state, beside weights, moments and random numbers."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from distillchain_api.base import Record
from distillchain_trainer.engine.device.modes import Mode
from distillchain_trainer.engine.training.selection import BestSoFar
from distillchain_trainer.engine.training.stepper import Stepper

FILE = "loop.json"


class SavedLoop(Record):
    """The loop's own part of a state."""

    recent: list[float] = Field(default_factory=list)
    """Losses of the last steps: the mean that progress shows continues, instead of starting from a single loss."""
    asked_rows: int | None = None
    """The micro-batch that was asked for; None: not known."""
    micro_rows: int | None = None
    """Smaller than asked for after memory was short."""
    recomputes: bool = False
    mode: Mode | None = None
    """A resumed training continues in the same mode, so that it gives the same result."""
    best: BestSoFar = BestSoFar()
    """The best epoch so far, with `selection: Best`."""

    @classmethod
    def read(cls, state: Path, asked_rows: int) -> SavedLoop:
        """What a state has for a training that asks for micro-batches of so many rows.

        What was found with another size is left out: more rows may fit now, and another mode may be faster. A state
        that does not say what was asked for, as of an earlier build, is taken as it is.
        """
        saved = cls.parse((state / FILE).read_bytes())
        if saved.asked_rows in (None, asked_rows):
            return saved
        return saved.model_copy(update={"micro_rows": None, "recomputes": False, "mode": None})

    @classmethod
    def of(cls, stepper: Stepper, asked_rows: int, *, recent: list[float], best: BestSoFar) -> SavedLoop:
        """What a state keeps of a running loop."""
        return cls(
            recent=recent,
            asked_rows=asked_rows,
            micro_rows=stepper.eager.micro_rows,
            recomputes=stepper.eager.recomputes,
            mode=stepper.decided_mode,
            best=best,
        )

    def write(self, state: Path) -> None:
        """Adds the file to the folder of a state."""
        (state / FILE).write_text(self.to_json(), encoding="utf-8")
