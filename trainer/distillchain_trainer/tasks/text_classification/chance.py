"""Good enough to go on? Pure sentences about measured numbers."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence

from distillchain_api.resource.spec import Gate
from distillchain_api.wire.manifest import SplitMetrics
from distillchain_api.wire.work_order import TeacherRef
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


def chance_to_beat(classes: Sequence[int], predicted: Sequence[int], *, metric: str) -> tuple[float, float]:
    """The accuracy that chance alone would reach, and that plus a binomial margin (one-sided 95 %), below 1.

    Also where the metric is macroF1: guesses reach a macro F1 of 0.5, which always saying one class does not, so
    neither says anything of the other. But who must find a rare class may be right less often than who never says it:
    there chance is what the same predictions reach in any other order (as in Cohen's kappa).
    """
    rows, truth = len(classes), Counter(classes)
    if metric == "accuracy":
        chance = max(truth.values()) / rows
    else:
        chance = sum(truth[index] * count for index, count in Counter(predicted).items()) / rows**2
    margin = Z_95 * math.sqrt(chance * (1 - chance) / rows)
    return chance, min(chance + margin, 1 - 0.5 / rows)  # of few rows, only all must do


def best_order(classes: Sequence[int], predicted: Sequence[int], *, count: int) -> tuple[int, ...] | None:
    """How the predicted classes lie to the true ones, where another order than the given is surely better.

    Returns: for each class the one that is predicted for it; None: as they are, or too many classes to try.
    """
    if count > MAX_TURNED_CLASSES:
        return None
    pairs, rows = Counter(zip(classes, predicted, strict=True)), len(classes)

    def hits(order: Sequence[int]) -> int:
        return sum(pairs[index, order[index]] for index in range(count))

    best = max(itertools.permutations(range(count)), key=hits)
    chance, needed = chance_to_beat(classes, predicted, metric="accuracy")
    return best if hits(best) > needed * rows and hits(best) - hits(range(count)) > (needed - chance) * rows else None


def remedy(teacher: TeacherRef) -> str:
    """How a teacher is made better."""
    if teacher.digest is None:
        return "fine-tune it (spec.teacher.fineTune)"
    return f"train stage {teacher.name} better (more epochs, another learningRate, a smaller step down)"


def check_teacher_gate(teacher: TeacherRef, uri: str, value: float, *, metric: str) -> None:
    """Raises: GateNotMet."""
    if teacher.gate is not None and value < teacher.gate.min_metric:
        raise GateNotMet(
            f"teacher {uri}: {metric} {share(value, teacher.gate.min_metric)} is under spec.teacher.gate.minMetric "
            f"{share(teacher.gate.min_metric)}; {remedy(teacher)} or lower the gate"
        )


def check_teacher(
    teacher: TeacherRef,
    uri: str,
    metrics: SplitMetrics,
    *,
    metric: str,
    classes: Sequence[int],
    predicted: Sequence[int],
    labels: Sequence[str],
    named: bool,
) -> None:
    """Holds a teacher's gate, and that it beats chance.

    Args:
        classes, predicted: on validation.
        named: its classes have names; else their order shows only here.
    Raises: GateNotMet; LabelMismatch for unnamed classes in another order than the task's.
    """
    if not named:
        _check_turned(uri, classes, predicted, labels)
    check_teacher_gate(teacher, uri, metrics[metric], metric=metric)
    doubt = doubt_of(metrics["accuracy"], metric=metric, classes=classes, predicted=predicted)
    if doubt is not None:
        raise GateNotMet(f"teacher {uri}: {doubt}; {remedy(teacher)} or use more validation rows")


def _check_turned(uri: str, classes: Sequence[int], predicted: Sequence[int], labels: Sequence[str]) -> None:
    """Unnamed classes that fit better in another order probably stand in it."""
    best = best_order(classes, predicted, count=len(labels))
    if best is None:
        return
    pairs, rows = list(zip(classes, predicted, strict=True)), len(classes)
    now, turned = (sum(guess == order[truth] for truth, guess in pairs) for order in (range(len(labels)), best))
    names = ", ".join(labels[best.index(column)] for column in range(len(labels)))
    raise LabelMismatch(
        f"teacher {uri}: accuracy {share(now / rows)} with LABEL_0.. taken as {', '.join(labels)}, but "
        f"{share(turned / rows)} as {names}: its classes are probably in that order; "
        "write their names into id2label of its config.json"
    )


def doubt_of(accuracy: float, *, metric: str, classes: Sequence[int], predicted: Sequence[int]) -> str | None:
    """Why a model's answers on validation do not tell it from a guesser's; None where they surely do."""
    chance, needed = chance_to_beat(classes, predicted, metric=metric)
    if accuracy > needed:
        return None
    of = "for the most frequent class" if metric == "accuracy" else "for its predictions in any other order"
    return (
        f"accuracy {share(accuracy, needed)} on {len(classes)} validation rows is not above chance "
        f"({share(chance)} {of}, {share(needed)} with a margin for so few rows)"
    )


def check_student(
    stage: str, field: str, value: float, *, metric: str, gate: Gate, teacher: float | None, kept: str
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
