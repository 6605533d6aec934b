"""Numbers as readers expect them. They stay numbers until here."""

from __future__ import annotations

import re
from collections.abc import Callable

from distillchain_api.metrics import significant
from distillchain_report.model import Estimate, MetricFacts

NOTHING = "–"
DIGITS = 4


def share(value: float | None) -> str:
    """`0.893`."""
    return NOTHING if value is None else f"{value:.3f}"


def measured(value: float | None, metric: MetricFacts) -> str:
    """A value of a metric: three decimals for a share, otherwise `number`."""
    return share(value) if metric.is_share else number(value)


def number(value: float | None) -> str:
    """Four significant digits, and all before the decimal point: `12.35`, `18004`."""
    return NOTHING if value is None else significant(value, DIGITS)


def percent(value: float | None, digits: int = 1) -> str:
    """`97.1 %`."""
    return NOTHING if value is None else f"{100 * value:.{digits}f} %"


def share_range(estimate: Estimate | None) -> str:
    """`0.872-0.912` with an en dash, or nothing."""
    return _range(estimate, share)


def share_cells(estimate: Estimate | None) -> tuple[str, str]:
    """A share and its interval, for two columns."""
    return share(estimate.value if estimate else None), share_range(estimate)


def measured_range(estimate: Estimate | None, metric: MetricFacts) -> str:
    """The interval of a metric's value, or nothing."""
    return _range(estimate, lambda value: measured(value, metric))


def percent_range(estimate: Estimate | None) -> str:
    """`95.2-99.0 %` with an en dash, or nothing."""
    found = _range(estimate, lambda value: f"{100 * value:.1f}")
    return f"{found} %" if found else ""


def _range(estimate: Estimate | None, written: Callable[[float], str]) -> str:
    if estimate is None or estimate.low is None or estimate.high is None:
        return ""
    # A dash beside a minus sign could not be told from it.
    dash = " to " if estimate.low < 0 else "–"
    return f"{written(estimate.low)}{dash}{written(estimate.high)}"


def p_value(value: float | None) -> str:
    """`0.031`; very small ones as a bound."""
    if value is None:
        return NOTHING
    # `0.000` would claim that the difference cannot be due to chance.
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def measured_change(value: float, metric: MetricFacts) -> str:
    """`-0.012` or `+0.003`: a difference of two values of a metric."""
    return f"{value:+.3f}" if metric.is_share else change(value)


def detectable(value: float, metric: MetricFacts) -> str:
    """The smallest difference that would have been found; `none` if shares cannot differ by so much."""
    return "none" if metric.is_share and value > 1 else measured(value, metric)


def change(value: float) -> str:
    """`-7.805` or `+18004`: a difference of two numbers."""
    # Rounding may leave nothing of a tiny number, so its sign is that of the number itself.
    return f"{'-' if value < 0 else '+'}{number(abs(value))}"


def count(number: float | None) -> str:
    """`22.7 M`: a number of parameters or rows."""
    if number is None:
        return NOTHING
    for unit, size in (("G", 1e9), ("M", 1e6), ("K", 1e3)):
        # 999.5 of a unit and more would round to 1000, so the next unit starts there.
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
    # 9.95 would be written as 10.0.
    return f"{value:,.0f}×" if value >= 9.95 else f"{value:.1f}×"


def duration(seconds: float | None) -> str:
    """`1 h 02 min`, `4 min 05 s`, `12.3 s`."""
    if seconds is None:
        return NOTHING
    # From 59.95 on it would be written as 60.0 s.
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole // 60 % 60:02d} min"


def hours(value: float | None) -> str:
    """`0.41 h`."""
    return NOTHING if value is None else f"{value:.2f} h"


def milliseconds(value: float | None) -> str:
    """`0.84 ms`, `12.3 ms`, `148 ms`."""
    if value is None:
        return NOTHING
    # The bounds keep three digits after rounding: 9.995 is 10.0 and not 10.00.
    digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:,.{digits}f} ms"


def rate(value: float | None) -> str:
    """`812`: examples per second."""
    if value is None:
        return NOTHING
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def short(digest: str) -> str:
    """The first twelve characters of a digest or revision, which are enough to identify it."""
    kind, colon, digits = digest.rpartition(":")
    return f"{kind}{colon}{digits[:12]}" if len(digits) > 12 and digits.isalnum() else digest


def short_revisions(text: str) -> str:
    """A text in which every long revision is cut to twelve digits."""
    # At least 32 digits, as md5, git and sha256 have: a shorter word of these letters may be part of a name.
    return re.sub(r"\b([0-9a-f]{12})[0-9a-f]{20,}\b", r"\1", text)


def plural(number: int, noun: str) -> str:
    """`1 warning`, `2 warnings`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
