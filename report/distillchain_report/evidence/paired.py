"""The difference of two recipes that were trained with several seeds each and measured on the same rows.

Model: the value of recipe m, trained with seed s, on row i is

    y[m, s, i] = mean[m] + row[i] + interaction[m, i] + seed[m, s] + noise[m, s, i]

Rows are crossed with seeds: every student answers every row. The difference of the two means then varies for three
reasons: other rows, other seeds, and noise. A test that looks at the rows of one pair of
students ignores the seeds, and calls luck a result; a test that looks at the means of the seeds ignores the rows.
Both are variance components of one mixed model here, estimated from mean squares without bias (Searle, Casella and
McCulloch, Variance Components, 1992, chapter 4). The interval gives each component its own t quantile (Banerjee 1960);
the degrees of freedom of the seeds, whose spread may differ between the recipes, are those of Welch (1947).
bench/evidence_errors.py simulates it: its intervals cover, and it does not find differences that do not exist.

Metrics that are no means over rows, such as macro F1, enter by their jackknife pseudo-values (pseudo_values.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from distillchain_api.resource.evidence import MAX_SEEDS
from distillchain_report.statistics import CONFIDENCE, Floats

POWER = 0.8
"""Probability with which the smallest detectable difference would be found; the usual level."""
UNSEEN_ROWS = 3
"""If no row of n differs, up to about this many may differ in another sample of n: the rule of three (Hanley and
Lippman-Hand 1983). Otherwise a few rows that both recipes answer alike would prove that they are equal."""
MAX_ROWS_FACTOR = 100
LEAST_TAIL = 1e-12
"""Half of the smallest p-value that is not taken for 0."""
TAIL_ERROR = 1e-12
"""Relative error of a p-value."""


@dataclass(frozen=True)
class SeedRuns:
    """One recipe, trained with several seeds.

    Attributes:
        values: the metric of each student [seeds].
        parts: what each row contributes to it [seeds, rows]; the mean over rows is about the value.
    """

    values: Floats
    parts: Floats

    def __post_init__(self) -> None:
        if self.parts.ndim != 2 or self.values.shape != self.parts.shape[:1] or min(self.parts.shape) < 2:
            raise ValueError(
                f"got values {self.values.shape} and parts {self.parts.shape}, expected [seeds] and [seeds, rows] with "
                "at least two of each"
            )

    @property
    def seeds(self) -> int:
        """Number of students."""
        return len(self.values)

    @property
    def rows(self) -> int:
        """Number of rows."""
        return int(self.parts.shape[1])


@dataclass(frozen=True)
class Spread:
    """Where the variance of a difference comes from, in squared units of the metric.

    Attributes:
        rows: variance of the difference's contribution from row to row, free of noise.
        seeds: sum over both recipes of the variance from seed to seed.
        noise: sum over both recipes of the variance that is left.
    """

    rows: float
    seeds: float
    noise: float


@dataclass(frozen=True)
class Difference:
    """The first recipe minus the second.

    Attributes:
        value: difference of the mean metrics.
        low, high: 95 % interval, for other rows and other seeds. With several comparisons, all their intervals together
            cover with that probability (Bonferroni).
        p_value: two-sided, multiplied by the number of comparisons.
        detectable: the smallest difference that these rows and seeds would have found with a probability of 80 %.
        spread: the variance components.
        comparisons: number of comparisons that are judged together.
        row_unit: how much a row contributes at most if the recipes differ on it; 0: unknown.
    """

    value: float
    low: float
    high: float
    p_value: float
    detectable: float
    rows: int
    seeds: int
    spread: Spread
    comparisons: int = 1
    row_unit: float = 0.0

    def seeds_for(self, half_width: float) -> int | None:
        """The fewest seeds, with these rows, whose interval is expected to be narrower than this on each side; None: no
        number up to MAX_SEEDS."""
        candidates = range(self.seeds + 1, MAX_SEEDS + 1)
        return next((seeds for seeds in candidates if self._half_width(self.rows, seeds) < half_width), None)

    def rows_for(self, half_width: float) -> int | None:
        """The fewest rows, with these seeds, in steps of 10 %; None: not even MAX_ROWS_FACTOR times as many."""
        candidates = (round(self.rows * 1.1**step) for step in range(1, 1 + round(math.log(MAX_ROWS_FACTOR, 1.1))))
        return next((rows for rows in candidates if self._half_width(rows, self.seeds) < half_width), None)

    def _half_width(self, rows: int, seeds: int) -> float:
        by_rows = max((self.spread.rows + self.spread.noise / seeds) / rows, _unseen(rows, self.row_unit))
        by_seeds = (self.spread.seeds + self.spread.noise / rows) / seeds
        error = _error(
            by_rows,
            (by_seeds / 2, by_seeds / 2),
            rows=rows,
            seeds=(seeds, seeds),
            noise=self.spread.noise / (rows * seeds),
        )
        return error.margin(_tail(self.comparisons))


def difference(first: SeedRuns, second: SeedRuns, *, comparisons: int = 1, row_unit: float = 0.0) -> Difference:
    """Compares two recipes on the same rows, in the same order.

    Args:
        comparisons: number of comparisons that are judged together.
        row_unit: how much a row contributes at most if the recipes differ on it, 1 for a share; 0: unknown.
    Raises: ValueError for different numbers of rows.
    """
    if first.rows != second.rows:
        raise ValueError(f"got {first.rows} and {second.rows} rows, expected the same rows")
    rows = first.rows
    value = float(first.values.mean() - second.values.mean())
    # Paired: what makes a row hard for both recipes cancels.
    per_row = first.parts.mean(axis=0) - second.parts.mean(axis=0)
    measured = float(per_row.var(ddof=1)) / rows
    by_rows = max(measured, _unseen(rows, row_unit))
    by_seeds = tuple(float(runs.values.var(ddof=1)) / runs.seeds for runs in (first, second))
    noises = [_noise(runs) for runs in (first, second)]
    # Both mean squares contain the noise, so that it would count twice.
    noise = sum(noise / (rows * runs.seeds) for noise, runs in zip(noises, (first, second), strict=True))
    error = _error(by_rows, by_seeds, rows=rows, seeds=(first.seeds, second.seeds), noise=noise)
    margin = error.margin(_tail(comparisons))
    return Difference(
        value=value,
        low=value - margin,
        high=value + margin,
        p_value=min(1.0, comparisons * error.p_value(value)),
        detectable=margin + error.margin(1 - POWER),
        rows=rows,
        seeds=min(first.seeds, second.seeds),
        spread=Spread(
            rows=max(0.0, rows * (measured - noise)),
            seeds=sum(
                max(0.0, runs.seeds * part - own / rows)
                for runs, part, own in zip((first, second), by_seeds, noises, strict=True)
            ),
            noise=sum(noises),
        ),
        comparisons=comparisons,
        row_unit=row_unit,
    )


def mean_interval(runs: SeedRuns, *, row_unit: float = 0.0) -> tuple[float, float]:
    """The 95 % interval of the mean metric of one recipe, for other rows and other seeds.

    Intervals of two recipes may overlap although their difference is certain: rows are hard for both.

    Args:
        row_unit: how much a row can change the sum over rows, 1 for a share; 0: unknown.
    """
    mean = float(runs.values.mean())
    by_rows = max(float(runs.parts.mean(axis=0).var(ddof=1)) / runs.rows, _unseen(runs.rows, row_unit))
    by_seeds = (float(runs.values.var(ddof=1)) / runs.seeds,)
    noise = _noise(runs) / (runs.rows * runs.seeds)
    margin = _error(by_rows, by_seeds, rows=runs.rows, seeds=(runs.seeds,), noise=noise).margin(_tail(1))
    return mean - margin, mean + margin


def row_interval(differences: Floats, value: float, *, row_unit: float = 0.0) -> tuple[float, float]:
    """The 95 % interval of the difference of two single students for other rows; other seeds are not covered.

    Args:
        differences: the first student's contribution minus the second's [rows].
        value: the difference of their metrics.
        row_unit: how much a row contributes at most if the students differ on it, 1 for a share; 0: unknown.
    """
    rows = len(differences)
    if rows < 2:
        return -math.inf, math.inf
    variance = max(float(differences.var(ddof=1)) / rows, _unseen(rows, row_unit))
    margin = _t(_tail(1), rows - 1) * math.sqrt(variance)
    return value - margin, value + margin


def _tail(comparisons: int) -> float:
    """The probability beyond each end of the interval of one of several comparisons that cover together with 95 %."""
    return (1 - CONFIDENCE) / (2 * comparisons)


def _unseen(rows: int, unit: float) -> float:
    """The least variance of a difference or mean: that of the rows which could differ although none does here."""
    return UNSEEN_ROWS * (unit / rows) ** 2


def _noise(runs: SeedRuns) -> float:
    """The mean square of what neither the row nor the seed explains."""
    parts = runs.parts
    left = parts - parts.mean(axis=0) - parts.mean(axis=1, keepdims=True) + parts.mean()
    return float((left**2).sum() / ((runs.seeds - 1) * (runs.rows - 1)))


@dataclass(frozen=True)
class _Error:
    """What makes a difference or a mean uncertain.

    Attributes:
        rows, seeds: variance that comes from other rows, and from other seeds.
        rows_freedom, seeds_freedom: degrees of freedom of these estimates.
    """

    rows: float
    rows_freedom: float
    seeds: float
    seeds_freedom: float

    def margin(self, tail: float) -> float:
        """Half the width of the interval with this probability beyond each end.

        One quantile for the sum, with the degrees of freedom of Satterthwaite (1946), would be too small for two or
        three seeds: they are estimated from the same few seeds, and are high where the spread came out low by chance.
        """
        rows, seeds = self.rows, self.seeds
        return math.sqrt(_t(tail, self.rows_freedom) ** 2 * rows + _t(tail, self.seeds_freedom) ** 2 * seeds)

    def p_value(self, value: float) -> float:
        """Two-sided: that of the widest interval around the value which does not contain 0."""
        if value == 0:
            return 1.0
        if self.margin(LEAST_TAIL) <= abs(value):
            return 0.0
        # Bisection of the tail's logarithm. scipy.optimize, which has faster ways, takes a third of a second to import.
        low, high = math.log(LEAST_TAIL), math.log(0.5)
        while high - low > TAIL_ERROR:
            middle = (low + high) / 2
            is_wider = self.margin(math.exp(middle)) > abs(value)
            low, high = (middle, high) if is_wider else (low, middle)
        return 2 * math.exp(high)


def _error(by_rows: float, by_seeds: tuple[float, ...], *, rows: int, seeds: tuple[int, ...], noise: float) -> _Error:
    """The error of a difference of two recipes, or of the mean of one.

    Args:
        by_rows, by_seeds: mean squares divided by their numbers, noise included.
        noise: what they contain twice.
    """
    of_seeds = sum(by_seeds)
    # Never below one of the two sources: the estimate of a small component can be too small by chance.
    variance = max(by_rows + of_seeds - noise, by_rows, of_seeds)
    squares = sum(part**2 for part in by_seeds)
    # Welch's, as if all recipes had the fewest seeds: otherwise two seeds that are alike by chance would let the many
    # seeds of the other recipe vouch for them. Without any spread of seeds, their quantile does not matter.
    freedom = (min(seeds) - 1) * (of_seeds**2 / squares if squares else 1)
    # Half a degree less: it is estimated from few seeds, and too optimistic where most of the spread is one recipe's.
    freedom = max(min(seeds) - 1, freedom - 0.5)
    return _Error(variance - of_seeds, rows - 1, of_seeds, freedom)


def _t(tail: float, freedom: float) -> float:
    """The quantile of Student's t that is exceeded with the probability `tail`."""
    from scipy.special import stdtrit  # scipy.stats takes half a second to import

    return -float(stdtrit(freedom, tail))
