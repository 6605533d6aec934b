"""Metrics by name: how they are written, which direction is better, and what a student keeps of its teacher."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """A measured quantity.

    Attributes:
        name: as in `spec.task.metric`, manifests and status.
        display_name: as in a sentence.
        higher_is_better: the direction in which gates and differences read.
        is_share: from 0 to 1, so that a ratio of two values means something.
    """

    name: str
    display_name: str
    higher_is_better: bool = True
    is_share: bool = True


ACCURACY = Metric("accuracy", "accuracy")
MACRO_F1 = Metric("macroF1", "macro F1")


def retention(student: float, teacher: float, metric: Metric) -> float | None:
    """The student's metric as a share of the teacher's; None where a ratio says nothing."""
    return student / teacher if metric.is_share and teacher > 0 else None


def format_share(value: float, beside: float | None = None) -> str:
    """`0.612`: two to four decimals; more where `beside` would otherwise read the same."""
    text = ""
    # Else a message could say that 0.9 is below 0.9. Nine decimals are as fine as a gate's rounding.
    for decimals in (4, 6, 9):
        whole, _, rest = f"{value:.{decimals}f}".rstrip("0").partition(".")
        text = f"{whole}.{rest:0<2}"
        if beside is None or value == beside or text != format_share(beside):
            break
    return text
