"""What a run, `status` and `logs` say of a stage: its progress, how it ended, its warnings."""

from __future__ import annotations

from distillchain_api.resource.status import StageStatus
from distillchain_api.wire import answer
from distillchain_api.wire.answer import ProgressPhase
from distillchain_cli.output.columns import duration, rate
from distillchain_operator.status.chain_status import metric_of

PROGRESS_INTERVAL_S = 5.0  # between two lines on the progress of one phase
NOT_NEEDED = "not needed, because what needs it is committed"
PHASES: dict[ProgressPhase, str] = {
    "FetchTeacher": "fetch teacher",
    "MeasureTeacher": "measure teacher",
    "MeasureStudent": "measure student",
    "TeacherLogits": "teacher logits",
    "Train": "train",
    "Evaluate": "evaluate",
    "Upload": "upload",
    "Export": "export",
}


def numbers(line: answer.Progress) -> str:
    """`loss 0.41 812 examples/s eta 0:00:41`: the numbers that are known."""
    parts = [
        f"loss {line.loss:.2f}" if line.loss is not None else "",
        f"{rate(line.examples_per_second)} examples/s" if line.examples_per_second else "",
        f"eta {duration(line.eta_s)}" if line.eta_s is not None else "",
    ]
    return " ".join(filter(None, parts))


def sentence(line: answer.Progress) -> str:
    """`train 120/600 loss 0.41 812 examples/s eta 0:00:41`."""
    of = f" {line.step}/{line.of}" if line.of else ""
    return f"{PHASES[line.phase]}{of} {numbers(line)}".rstrip()


def ending(entry: StageStatus, metric: str) -> str:
    """How a vertex ended. Why a stage failed is printed once, at the end of the run."""
    if entry.verdict is not None:
        return f"{entry.verdict.outcome}: {entry.verdict.sentence}"
    if entry.phase == "Committed" and entry.checkpoint is None:
        return NOT_NEEDED
    if entry.phase == "Committed":
        how = "already committed" if entry.reused else f"committed after {duration(entry.elapsed_seconds)}"
        doubt = f"; it {entry.message}" if entry.message else ""
        return f"{how}, {metric} {metric_of(entry.model, metric)}: {entry.checkpoint}{doubt}"
    return f"failed: {entry.failure_class}" if entry.phase == "Failed" else "stopped"


def training_lines(entry: StageStatus) -> list[str]:
    """`tiny: epoch 3 of 5 chosen on validation`, and of several teachers all, where that is so."""
    chosen = entry.selected_epoch
    epoch = f"epoch {chosen.epoch} of {chosen.trained_epochs} chosen on validation" if chosen else ""
    notes = filter(None, [epoch, _teachers(entry)])
    return [f"{entry.name}: {note}" for note in notes]


def _teachers(entry: StageStatus) -> str:
    """`taught by the stage before (67 %) and teacher (33 %, 0.9312)`; empty: by one alone."""
    others = entry.further_teachers
    if not others:
        return ""
    # Status does not name the first one, which is always the stage before; its metric is in the line of that stage.
    first = 1 - sum(float(other.share) for other in others)
    *named, last = [
        f"the stage before ({100 * first:.0f} %)",
        *(f"{other.name} ({100 * float(other.share):.0f} %, {other.metric})" for other in others),
    ]
    return f"taught by {', '.join(named)} and {last}"


def warning_lines(entry: StageStatus) -> list[str]:
    """`tiny: warning: ...`: what the trainer wants the user to know about data, checkpoints, result and export."""
    return [*(f"{entry.name}: warning: {warning}" for warning in entry.warnings), *export_lines(entry)]


def export_lines(entry: StageStatus) -> list[str]:
    """`tiny: export onnx failed: ...`: what becomes of an export that a committed stage lacks."""
    missing = entry.missing_export
    if missing is None:
        return []
    why = ": ".join(filter(None, (missing.failure_class, missing.message)))
    return [f"{entry.name}: export {missing.export} {missing.phase.lower()}" + (f": {why}" if why else "")]
