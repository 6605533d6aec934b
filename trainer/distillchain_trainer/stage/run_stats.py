"""Time and steps of a stage over all its attempts."""

from __future__ import annotations

from dataclasses import dataclass

from distillchain_api.wire.manifest import SelectedEpoch
from distillchain_trainer.engine.training.progress import TrainingProgress
from distillchain_trainer.engine.training.saved_state import ResumeIndex


@dataclass
class RunStats:
    """What the manifest says of the run; seconds and steps of earlier attempts are included.

    Attributes:
        model_s: in forward and backward passes.
        elapsed_before_s: wall time of earlier attempts, as far as they saved it.
        train_s: in training steps.
        micro_batch_size: rows of a forward pass; smaller than asked for where memory was short.
        mode: how steps are executed.
        logits: folders of the teachers' outputs; None: not known.
        trained_parameters: those of an adapter and of the head; None: all are trained.
        selected: the epoch whose weights the student has; None: those of the last one.
    """

    model_s: float = 0.0
    elapsed_before_s: float = 0.0
    train_s: float = 0.0
    final_loss: float = 0.0
    steps: int = 0
    logits_reused: bool = False
    logits: list[str] | None = None
    resumed: bool = False
    micro_batch_size: int = 0
    mode: str = "eager"
    trained_parameters: int | None = None
    selected: SelectedEpoch | None = None

    def take_over(self, index: ResumeIndex) -> None:
        """Continues the counts of a saved state."""
        self.resumed = True
        self.elapsed_before_s = index.elapsed_s
        # Added, because this attempt has measured the teacher by now. The others are still zero.
        self.model_s += index.model_s
        self.train_s, self.steps, self.final_loss = index.train_s, index.step, index.final_loss
        self.micro_batch_size, self.mode = index.micro_batch_size, index.mode
        self.logits_reused, self.logits = index.logits_reused, index.logits
        self.selected = index.selected

    def trained(self, progress: TrainingProgress) -> None:
        """Takes over the progress of the training."""
        # Only what is new since the last call: this is called at every save.
        self.model_s += progress.train_s - self.train_s
        self.train_s, self.steps, self.final_loss = progress.train_s, progress.step, progress.loss
        self.micro_batch_size, self.mode = progress.micro_batch_size, progress.mode
        self.selected = progress.selected

    def index(
        self, progress: TrainingProgress, *, elapsed_s: float, warnings: list[str], is_complete: bool
    ) -> ResumeIndex:
        """For a state that is saved after `elapsed_s` seconds of this attempt, with its warnings so far."""
        return ResumeIndex(
            step=progress.step,
            of=progress.of,
            elapsed_s=self.elapsed_before_s + elapsed_s,
            model_s=self.model_s,
            train_s=progress.train_s,
            final_loss=progress.loss,
            logits_reused=self.logits_reused,
            logits=self.logits,
            micro_batch_size=progress.micro_batch_size,
            mode=progress.mode,
            warnings=warnings,
            is_complete=is_complete,
            selected=progress.selected,
        )
