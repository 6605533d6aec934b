"""Metrics by name: which direction is better, what a student keeps of its teacher, and how values are written."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

SHARE_DECIMALS = (4, 6, 9)
"""Decimals of a share; more where two values would otherwise read the same. Nine are as fine as a gate's rounding."""
SIGNIFICANT_DIGITS = (4, 6, 9)
"""The same for values without a known range, such as a perplexity."""


@dataclass(frozen=True)
class Metric:
    """A measured quantity.

    Attributes:
        name: as in `spec.task.metric`, manifests and status.
        display_name: as in a sentence.
        higher_is_better: the direction in which gates and differences read.
        is_share: from 0 to 1, so that a ratio of two values means something.
        lowest, highest: the range of the values of one that is no share; infinite where it has no bound.
    """

    name: str
    display_name: str
    higher_is_better: bool = True
    is_share: bool = True
    lowest: float = -math.inf
    highest: float = math.inf

    @property
    def range(self) -> tuple[float, float]:
        """The lowest and the highest value there can be."""
        return (0.0, 1.0) if self.is_share else (self.lowest, self.highest)

    @property
    def largest_difference(self) -> float:
        """Of two values; infinite where the metric has no bound."""
        lowest, highest = self.range
        return highest - lowest

    def possible_differences(self, low: float, high: float) -> tuple[float, float]:
        """The ends of an interval of a difference, without differences that no two values can have.

        It covers the true difference as often as before, because that is one of the possible ones.
        """
        return max(low, -self.largest_difference), min(high, self.largest_difference)

    @property
    def has_retention(self) -> bool:
        """Whether a student can keep a share of its teacher's value; not of an error, which is better when lower."""
        return self.is_share and self.higher_is_better

    @property
    def best(self) -> float:
        """The best value there can be; infinite where the metric has no bound."""
        return self.range[1] if self.higher_is_better else self.range[0]

    @property
    def worst(self) -> float:
        """The worst value there can be; infinite where the metric has no bound."""
        return self.range[0] if self.higher_is_better else self.range[1]

    def worse_by(self, value: float, than: float) -> float:
        """How much worse `value` is than another one, in the metric's unit; negative where it is better."""
        return than - value if self.higher_is_better else value - than

    def is_better(self, value: float, than: float) -> bool:
        """Whether `value` is better than another one. A value that is not a number is never better."""
        return self.worse_by(value, than) < 0


ACCURACY = Metric("accuracy", "accuracy")
MACRO_F1 = Metric("macroF1", "macro F1")
MICRO_F1 = Metric("microF1", "micro F1")
SUBSET_ACCURACY = Metric("subsetAccuracy", "subset accuracy")
HAMMING_LOSS = Metric("hammingLoss", "Hamming loss", higher_is_better=False)
# A correlation is no share: it can be negative, and half a correlation is not half of anything.
PEARSON = Metric("pearson", "Pearson correlation", is_share=False, lowest=-1.0, highest=1.0)
SPEARMAN = Metric("spearman", "Spearman correlation", is_share=False, lowest=-1.0, highest=1.0)
MSE = Metric("mse", "mean squared error", higher_is_better=False, is_share=False, lowest=0.0)
MAE = Metric("mae", "mean absolute error", higher_is_better=False, is_share=False, lowest=0.0)


def metric_named(name: str, known: Iterable[Metric]) -> Metric:
    """The metric of this name. One of another release, which is not known, is a plain number."""
    # Without a known range, a ratio of two values may mean nothing, so it is no share.
    return next((metric for metric in known if metric.name == name), Metric(name, name, is_share=False))


def default_smallest_gain(metric: Metric, value: float) -> float:
    """The smallest gain that is worth a further stage, if the user states none: half a point, or 1 % of `value`."""
    # A correlation runs from -1 to 1. Of an error without a bound, only a share of it means something.
    return 0.005 if metric.largest_difference <= 2 else 0.01 * abs(value)


def retention(student: float, teacher: float, metric: Metric) -> float | None:
    """The student's metric as a share of the teacher's; None where a ratio says nothing.

    Of the values as status has them, or a report could say 91.8 % where status says 91.9 %.
    """
    ours, theirs = (float(format_for_status(value, metric)) for value in (student, teacher))
    return ours / theirs if metric.has_retention and theirs > 0 else None


def format_share(value: float, beside: float | None = None) -> str:
    """`0.612`: two to four decimals; more where `beside` would otherwise read the same."""
    text = ""
    # Else a message could say that 0.9 is below 0.9.
    for decimals in SHARE_DECIMALS:
        whole, _, rest = f"{value:.{decimals}f}".rstrip("0").partition(".")
        text = f"{whole}.{rest:0<2}"
        if beside is None or value == beside or text != format_share(beside):
            break
    return text


def format_value(value: float, metric: Metric, beside: float | None = None) -> str:
    """A metric's value in a sentence: a share as `format_share` writes it, otherwise four significant digits.

    Args:
        beside: a value in the same sentence; more digits are written where both would otherwise read the same.
    """
    if metric.is_share:
        return format_share(value, beside)
    text = ""
    for digits in SIGNIFICANT_DIGITS:
        text = significant(value, digits)
        if beside is None or value == beside or text != significant(beside, SIGNIFICANT_DIGITS[0]):
            break
    return text


def format_for_status(value: float, metric: Metric) -> str:
    """A metric's value as status keeps it: four decimals of a share, otherwise six significant digits."""
    # Four decimals would write a mean squared error of 0.00002 as 0.
    return f"{value:.4f}" if metric.is_share else significant(value, 6)


def significant(value: float, digits: int) -> str:
    """`123457`, `12.35` or `0.0001235`: so many digits, and all before the decimal point.

    Without an exponent as long as the number is readable.
    """
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    # A millionth still reads well as a decimal fraction, and so does a number of fifteen digits.
    exponent = math.floor(math.log10(abs(value)))
    if not -6 <= exponent <= 15:
        return f"{value:.{digits}g}"
    text = f"{value:.{max(0, digits - 1 - exponent)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
