"""Numbers as people read them, and the verdict in one sentence."""

from __future__ import annotations

import re
from typing import Literal

from distillchain_report.model import Estimate, Pairing, Report, StageReport

NOTHING = "–"
SIGNIFICANT = 0.05  # the field's habit; the p-value itself is always shown beside it
METRIC_NAMES = {"accuracy": "accuracy", "macroF1": "macro F1"}


def share(value: float | None) -> str:
    """`0.893`."""
    return NOTHING if value is None else f"{value:.3f}"


def percent(value: float | None, digits: int = 1) -> str:
    """`97.1 %`."""
    return NOTHING if value is None else f"{100 * value:.{digits}f} %"


def share_range(estimate: Estimate | None) -> str:
    """`0.872-0.912` with an en dash, or nothing."""
    if estimate is None or estimate.low is None or estimate.high is None:
        return ""
    return f"{estimate.low:.3f}–{estimate.high:.3f}"


def percent_range(estimate: Estimate | None) -> str:
    """`95.2-99.0 %` with an en dash, or nothing."""
    if estimate is None or estimate.low is None or estimate.high is None:
        return ""
    return f"{100 * estimate.low:.1f}–{100 * estimate.high:.1f} %"


def p_value(value: float | None) -> str:
    """`0.031`; tiny ones as a bound."""
    if value is None:
        return NOTHING
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def count(number: float | None) -> str:
    """`22.7 M`: a number of parameters or rows."""
    if number is None:
        return NOTHING
    for unit, size in (("G", 1e9), ("M", 1e6), ("K", 1e3)):
        if number >= size * 0.9995:
            return f"{number / size:.1f} {unit}" if number < size * 99.95 else f"{number / size:.0f} {unit}"
    return f"{number:.0f}"


def size(size_bytes: float | None) -> str:
    """`90.9 MB`, decimal."""
    if size_bytes is None:
        return NOTHING
    for unit, step in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size_bytes >= step * 0.9995:
            return f"{size_bytes / step:.1f} {unit}"
    return f"{size_bytes:.0f} B"


def factor(value: float | None) -> str:
    """`94x` with a multiplication sign."""
    if value is None:
        return NOTHING
    return f"{value:,.0f}×" if value >= 9.95 else f"{value:.1f}×"


def duration(seconds: float | None) -> str:
    """`1 h 02 min`, `4 min 05 s`, `12.3 s`."""
    if seconds is None:
        return NOTHING
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole // 60 % 60:02d} min"


def hours(value: float | None) -> str:
    """`0.41 h`."""
    return NOTHING if value is None else f"{value:.2f} h"


def rate(value: float | None) -> str:
    """`812`: examples a second."""
    if value is None:
        return NOTHING
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def short(digest: str) -> str:
    """The first twelve characters of a digest or revision, which name it in practice."""
    kind, colon, digits = digest.rpartition(":")
    return f"{kind}{colon}{digits[:12]}" if len(digits) > 12 and digits.isalnum() else digest


def short_revisions(text: str) -> str:
    """A text in which every long revision is cut to twelve digits."""
    return re.sub(r"\b([0-9a-f]{12})[0-9a-f]{20,}\b", r"\1", text)


def verdict(report: Report) -> str:
    """What came out, for someone who reads nothing else."""
    return " ".join(filter(None, (_ending(report), _result(report), _certainty(report))))


def _ending(report: Report) -> str:
    """How the chain stands, unless it succeeded."""
    if report.outcome == "Succeeded":
        return ""
    done = f"{report.totals.committed} of {report.totals.stages} stages committed"
    stopped = next(stage for stage in report.stages if stage.standing != "Committed")
    if report.outcome == "Failed":
        stopped = next((stage for stage in report.stages if stage.standing == "Failed"), stopped)
        return f"Failed at {stopped.name} ({stopped.failure_class or 'no class'}) with {done}: {_sentence(stopped)}"
    return f"Not finished: {done}; {stopped.name}: {_sentence(stopped)}"


def _sentence(stage: StageReport) -> str:
    text = (stage.message or "not committed yet").rstrip()
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _result(report: Report) -> str:
    last, root = report.last, report.root
    if last is None or last.model is None or root is None:
        return ""
    metric = METRIC_NAMES[report.metric]
    student = last.model
    if _above_chance(report) == "no":
        assert report.most_frequent is not None
        return (
            f"{last.name} has not learned the task: its {metric} of {share(student.metric.value)} is no better than "
            f"always answering the most frequent class ({share(report.most_frequent.value)})."
        )
    if student.retention is None:
        what = "is fine-tuned" if student is root else "cannot be held against the teacher"
        return (
            f"{last.name} {what}: {metric} {share(student.metric.value)}{_within(share_range(student.metric))} "
            f"with {count(student.parameters)} parameters."
        )
    verb = "keeps" if student.retention.value < 1 else "reaches"
    verb = verb if last is report.stages[-1] else f"so far {verb}"
    return (
        f"{last.name} {verb} {percent(student.retention.value)}{_within(percent_range(student.retention))} of the "
        f"teacher’s {metric} ({share(student.metric.value)} of {share(root.metric.value)}) with "
        f"{_smaller(student.compression)} of its parameters ({count(student.parameters)} of {count(root.parameters)})."
    )


def _smaller(compression: float) -> str:
    return f"1/{compression:,.0f}" if compression >= 9.95 else percent(1 / compression, 0)


def _within(text: str) -> str:
    return f" (95 % interval {text})" if text else ""


def _above_chance(report: Report) -> Literal["yes", "no", "unclear"]:
    """Whether the last student does better than who always says the most frequent class; unclear: on these rows."""
    last, chance = report.last, report.most_frequent
    if last is None or last.model is None or chance is None:
        return "yes"
    metric = last.model.metric
    if metric.value <= chance.value:
        return "no"
    return "unclear" if metric.low is not None and metric.low <= chance.value else "yes"


def _certainty(report: Report) -> str:
    last, chance = report.last, _above_chance(report)
    if last is None or last.model is None or chance == "no":
        return ""
    doubt = ""
    if chance == "unclear":
        assert report.most_frequent is not None
        doubt = (
            "These validation rows are too few to tell it from always answering the most frequent class "
            f"({share(report.most_frequent.value)}). "
        )
    if last.model.retention is None:
        return doubt.rstrip()
    if report.against_root is None:
        return f"{doubt}Whether the difference is more than chance cannot be said from what the store holds."
    return doubt + pairing_sentence(report.against_root)


def pairing_sentence(pairing: Pairing) -> str:
    """What McNemar's test says, in words."""
    p = p_value(pairing.p_value)
    p = p if p.startswith("<") else f"= {p}"
    if pairing.p_value >= SIGNIFICANT:
        return f"The difference is within what chance explains (McNemar’s exact test, p {p})."
    better = "loss" if pairing.only_teacher_right > pairing.only_student_right else "gain"
    return f"The {better} is more than chance explains (McNemar’s exact test, p {p})."
