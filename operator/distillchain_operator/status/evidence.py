"""What status says of the evidence beside a chain: the verdict in its form, and the condition EvidenceReady. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from distillchain_api.graph import Plan, PlannedStage
from distillchain_api.metrics import Metric, format_for_status
from distillchain_api.resource.status import (
    ChainPhase,
    ControlResult,
    EvidenceResult,
    OtherStageResult,
    StageStatus,
)
from distillchain_api.wire.answer import Committed
from distillchain_api.wire.evidence import ControlVerdict


class Truth(NamedTuple):
    """A condition that has a reason of its own."""

    is_true: bool
    reason: str
    message: str


def passes_of_controls(plan: Plan, entries: Sequence[StageStatus]) -> set[str]:
    """Names of the chain's passes that controls alone wait for, because the stages of the chain did without them.

    That is so if `teacherPass` is added to a committed stage, which never needs it, and `evidence` after that.
    """
    phases = {entry.name: entry.phase for entry in entries}
    needed = {need for stage in plan.stages if phases.get(stage.name) != "Committed" for need in stage.needs}
    open_passes = {stage.name for stage in plan.stages if stage.is_pass and phases.get(stage.name) != "Committed"}
    return open_passes - needed


def evidence_result(planned: PlannedStage, answer: Committed) -> EvidenceResult | None:
    """The verdict in the form of status; None for the answer of another vertex."""
    found = answer.evidence
    if found is None:
        return None
    metric, last = planned.work_order.task.deciding_metric, found.last
    return EvidenceResult(
        outcome=last.outcome,
        sentence=last.sentence,
        stage=last.stage,
        control=last.control,
        metric=format_for_status(last.metric, metric),
        controls=[_control(control, metric) for control in found.controls],
        seeds=last.seeds,
        rows=last.rows,
        smallest_gain=format_for_status(last.smallest_gain, metric),
        seeds_to_decide=last.seeds_to_decide,
        rows_to_decide=last.rows_to_decide,
        other_stages=[OtherStageResult.parse(other.to_document()) for other in found.others],
        missing=found.missing,
        uri=answer.checkpoint,
    )


def _control(found: ControlVerdict, metric: Metric) -> ControlResult:
    def shown(value: float) -> str:
        return format_for_status(value, metric)

    return ControlResult(
        control=found.control,
        metric=shown(found.metric),
        difference=shown(found.difference),
        low=shown(found.low),
        high=shown(found.high),
        p_value=f"{found.p_value:.4f}",
        detectable=shown(found.detectable),
    )


def evidence_ready(plan: Plan, phase: ChainPhase, entries: Sequence[StageStatus]) -> Truth | None:
    """Whether the verdict is there that the spec asks for; None if it asks for none.

    Args:
        phase: of the chain.
        entries: of the vertices beside it, and of passes for them; the verdict is the last one.
    """
    if not entries:
        return None
    verdict = entries[-1]
    sentence = verdict.message or "" if verdict.phase == "Committed" else ""
    failed = [entry for entry in entries if entry.phase == "Failed"]
    if failed:
        return Truth(False, "Failed", ". ".join(filter(None, (_failure(plan, failed), sentence))))
    if verdict.phase == "Committed":
        return Truth(True, "Ready", sentence)
    stuck = next((entry for entry in entries if entry.failure_class is not None), None)
    if stuck is not None:
        return Truth(False, str(stuck.failure_class), f"{stuck.name}: {stuck.message}")
    if why := plan.chain.suspended_by:
        return Truth(False, "Suspended", why)
    if phase == "Failed":
        return Truth(False, "ChainFailed", "the chain has failed, so there is no student to compare")
    done = sum(entry.phase == "Committed" for entry in entries)
    running = next((entry for entry in entries if entry.phase == "Running"), None)
    counted = f"{done} of {len(entries)} vertices committed"
    if running is not None:
        return Truth(False, "Running", f"{counted}; running {': '.join(filter(None, (running.name, running.message)))}")
    waiting = next(entry for entry in entries if entry.phase != "Committed")
    return Truth(False, "Pending", f"{counted}; {': '.join(filter(None, (waiting.name, waiting.message)))}")


def _failure(plan: Plan, failed: Sequence[StageStatus]) -> str:
    """Which vertices failed, why the first one did, and what to do."""
    others = f", and {len(failed) - 1} more" if len(failed) > 1 else ""
    first = failed[0]
    why = (first.message or str(first.failure_class)).rstrip(".")
    return f"{first.name}{others} failed: {why}; to try again: distillchain retry {plan.chain.name}"
