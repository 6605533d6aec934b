"""Good enough to go on? Pure sentences about measured numbers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from distillchain_api.chain import Gate, Metric, TeacherGate
from distillchain_api.manifest import SplitMetrics
from distillchain_trainer.errors import GateNotMet, LabelMismatch

Z_95 = 1.645  # one-sided 95 % of a normal distribution
ROUNDING = 1e-9  # 0.91 - 0.86 is 0.05000000000000004
MAX_TURNED_CLASSES = 6  # 720 orders; beyond, a person will see it in the confusion matrix


def share(value: float, beside: float | None = None) -> str:
    """`0.612`: at most four decimals, at least two; more where `beside` would read the same."""
    for decimals in (4, 6, 9):
        text = f"{value:.{decimals}f}".rstrip("0")
        whole, _, rest = text.partition(".")
        text = f"{whole}.{rest:0<2}"
        if beside is None or value == beside or text != share(beside):
            break
    return text


def chance_to_beat(classes: Sequence[int], *, count: int, metric: Metric) -> tuple[float, float]:
    """What always saying the most frequent class reaches, and that plus a binomial margin (one-sided 95 %)."""
    rows = len(classes)
    majority = max(list(classes).count(index) for index in set(classes)) / rows
    margin = Z_95 * math.sqrt(majority * (1 - majority) / rows)
    reached = majority if metric == "accuracy" else 2 * majority / (1 + majority) / count
    return reached, reached + margin


def check_teacher(
    uri: str,
    metrics: SplitMetrics,
    *,
    metric: Metric,
    gate: TeacherGate | None,
    classes: Sequence[int],
    predicted: Sequence[int],
    labels: Sequence[str],
    named: bool,
    remedy: str,
) -> None:
    """Holds a teacher's gate, and that it beats chance.

    Args:
        classes, predicted: on validation.
        named: its classes have names; else their order shows only here.
        remedy: how such a teacher is made better.
    Raises: GateNotMet; LabelMismatch for unnamed classes in another order than the task's.
    """
    value = metrics[metric]
    chance, needed = chance_to_beat(classes, count=len(labels), metric=metric)
    if value <= needed and not named:
        _check_turned(uri, classes, predicted, labels)
    if gate is not None and value < gate.min_metric:
        raise GateNotMet(
            f"teacher {uri}: {metric} {share(value, gate.min_metric)} is under spec.teacher.gate.minMetric "
            f"{share(gate.min_metric)}; {remedy} or lower the gate"
        )
    if value <= needed:
        raise GateNotMet(
            f"teacher {uri}: {metric} {share(value)} on {len(classes)} validation rows is not above chance "
            f"({share(chance)} for the most frequent class, {share(needed)} with a margin for so few rows); "
            f"{remedy} or use more validation rows"
        )


def _check_turned(uri: str, classes: Sequence[int], predicted: Sequence[int], labels: Sequence[str]) -> None:
    """Unnamed classes that would beat chance in another order are probably turned round."""
    if len(labels) > MAX_TURNED_CLASSES:
        return
    rows = len(classes)
    counts = {
        (a, b): sum(1 for pair in zip(classes, predicted, strict=True) if pair == (a, b))
        for a in range(len(labels))
        for b in range(len(labels))
    }
    best = max(
        itertools.permutations(range(len(labels))),
        key=lambda order: sum(counts[index, order[index]] for index in range(len(labels))),
    )
    hits = sum(counts[index, best[index]] for index in range(len(labels)))
    now = sum(counts[index, index] for index in range(len(labels)))
    _, needed = chance_to_beat(classes, count=len(labels), metric="accuracy")
    if hits / rows > needed:
        order = ", ".join(labels[best.index(column)] for column in range(len(labels)))
        raise LabelMismatch(
            f"teacher {uri}: accuracy {share(now / rows)} with LABEL_0.. taken as {', '.join(labels)}, but "
            f"{share(hits / rows)} as {order}: its classes are probably in that order; "
            "write their names into id2label of its config.json"
        )


def check_student(
    stage: str, field: str, value: float, *, metric: Metric, gate: Gate, teacher: float | None, kept: str
) -> None:
    """Holds a stage's gate; `kept` ends the message. Raises: GateNotMet."""
    if gate.min_metric is not None and value < gate.min_metric:
        raise GateNotMet(
            f"stage {stage}: {metric} {share(value, gate.min_metric)} is under {field}.gate.minMetric "
            f"{share(gate.min_metric)}; train it better or lower the gate: {kept}"
        )
    if gate.max_drop is not None and teacher is not None and teacher - value > gate.max_drop + ROUNDING:
        raise GateNotMet(
            f"stage {stage}: {metric} {share(value)} is {share(teacher - value, gate.max_drop)} below its teacher's "
            f"{share(teacher)}, more than {field}.gate.maxDrop {share(gate.max_drop)}; step down less, train it "
            f"better or raise the gate: {kept}"
        )
