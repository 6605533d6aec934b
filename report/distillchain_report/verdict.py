"""What came out of a chain, in a few sentences for a reader who reads nothing else."""

from __future__ import annotations

from distillchain_report.model import Comparison, MetricFacts, ModelReport, Report, StageReport
from distillchain_report.words import count, measured, measured_range, p_value, percent, percent_range

SIGNIFICANT = 0.05  # the usual level; the p-value itself is always shown beside it


def badge(report: Report) -> str:
    """The outcome in one or two words. A result that is in doubt is not shown as a plain success."""
    return "Succeeded, doubtful" if report.outcome == "Succeeded" and report.doubts else report.outcome


def verdict(report: Report) -> str:
    """The verdict of a report whose other fields are filled in."""
    return " ".join(filter(None, (_ending(report), _result(report), _significance(report), _worth(report))))


def _worth(report: Report) -> str:
    """Whether the steps in between paid, if that was measured."""
    return report.evidence.last.sentence if report.evidence else ""


def _ending(report: Report) -> str:
    """How the chain ended, unless it succeeded."""
    if report.outcome == "Succeeded":
        return ""
    done = f"{report.totals.committed} of {report.totals.stages} stages committed"
    stopped = next(stage for stage in report.stages if stage.phase != "Committed")
    if report.outcome == "Failed":
        # The failed stage can come after one that waits: a tightened gate reopens an earlier stage.
        stopped = next((stage for stage in report.stages if stage.phase == "Failed"), stopped)
        return f"Failed at {stopped.name} ({stopped.failure_class or 'no class'}) with {done}: {_message(stopped)}"
    return f"Not finished: {done}; {stopped.name}: {_message(stopped)}"


def _message(stage: StageReport) -> str:
    return _sentence((stage.message or "not committed yet").rstrip())


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _result(report: Report) -> str:
    last, root = report.last, report.root
    if last is None or last.model is None or root is None:
        return ""
    # A student at the level of chance also "keeps" half of its teacher's accuracy, so that ratio is not given then.
    doubts = " ".join(map(_sentence, report.doubts))
    if last.doubt:
        return f"{doubts} {_value_beside_root(report.metric, last.model, root)}"
    if last.model is root:
        result = f"{last.name} is fine-tuned: {_value_and_size(report.metric, root)}"
    elif last.model.retention is None:
        result = _without_retention(report, last.name, last.model, root)
    else:
        result = _with_retention(report, last, last.model, root)
    return f"{result} {doubts}".rstrip()


def _value_beside_root(metric: MetricFacts, model: ModelReport, root: ModelReport) -> str:
    own = f"{measured(model.metric.value, metric)}{_within(measured_range(model.metric, metric))}"
    if model is root:
        return f"Its {metric.display_name} is {own}."
    return f"Its {metric.display_name} is {own}, the teacher’s is {measured(root.metric.value, metric)}."


def _value_and_size(metric: MetricFacts, model: ModelReport) -> str:
    return (
        f"{metric.display_name} {measured(model.metric.value, metric)}{_within(measured_range(model.metric, metric))} "
        f"with {count(model.parameters)} parameters."
    )


def _without_retention(report: Report, name: str, student: ModelReport, root: ModelReport) -> str:
    """For metrics without a retention, and for a student that was not measured on the root teacher's rows."""
    if report.metric.has_retention:
        return f"{name} cannot be compared with the teacher: {_value_and_size(report.metric, student)}"
    return (
        f"{name} has {_value_and_size(report.metric, student).removesuffix('.')}; the teacher has "
        f"{measured(root.metric.value, report.metric)} with {count(root.parameters)}."
    )


def _with_retention(report: Report, last: StageReport, student: ModelReport, root: ModelReport) -> str:
    assert student.retention is not None
    metric = report.metric
    # A student can be better than its teacher, and nobody keeps 103 %.
    verb = "keeps" if student.retention.value < 1 else "reaches"
    verb = verb if last is report.stages[-1] else f"so far {verb}"
    return (
        f"{last.name} {verb} {percent(student.retention.value)}{_within(percent_range(student.retention))} of the "
        f"teacher’s {metric.display_name} ({measured(student.metric.value, metric)} of "
        f"{measured(root.metric.value, metric)}) with {_smaller(student.compression)} of its parameters "
        f"({count(student.parameters)} of {count(root.parameters)})."
    )


def _smaller(compression: float) -> str:
    # From 9.95 on it rounds to 10. A smaller fraction would be too coarse: 1/2 for anything from 1.5 to 2.5.
    return f"1/{compression:,.0f}" if compression >= 9.95 else percent(1 / compression, 0)


def _within(text: str) -> str:
    return f" (95 % interval {text})" if text else ""


def _significance(report: Report) -> str:
    last = report.last
    # Whether a student that has not learned the task differs from its teacher is no question.
    if last is None or last.model is None or last.model is report.root or last.doubt:
        return ""
    if report.against_root is not None:
        return significance_sentence(report.against_root, report.metric)
    if last.model.retention is None:
        return ""
    return "The store lacks what is needed to test whether the difference is statistically significant."


def significance_sentence(comparison: Comparison, metric: MetricFacts) -> str:
    """What the paired test says, in words."""
    p = p_value(comparison.p_value)
    test = f"(paired permutation test, p {p if p.startswith('<') else f'= {p}'})"
    if comparison.p_value >= SIGNIFICANT:
        return f"The difference in {metric.display_name} is not statistically significant {test}."
    change = "drop" if comparison.difference < 0 else "rise"
    return f"The {change} in {metric.display_name} is statistically significant {test}."
