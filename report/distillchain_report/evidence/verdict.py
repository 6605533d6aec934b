"""Whether the steps of a chain paid: the chain's last student against controls, as one of three outcomes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from distillchain_api.metrics import Metric, format_value
from distillchain_api.resource.evidence import Outcome
from distillchain_report.evidence.paired import MAX_ROWS_FACTOR, MAX_SEEDS, Difference

OUT_OF_REACH = f"neither {MAX_SEEDS} seeds nor {MAX_ROWS_FACTOR} times as many rows would decide"


@dataclass(frozen=True)
class Judgement:
    """The outcome of one chain.

    Attributes:
        control: the one that decided; for WorthIt the strongest.
        sentence: for a reader who reads nothing else.
        seeds, rows: how many would probably decide, the other number unchanged; None: decided, or not within reach.
    """

    outcome: Outcome
    control: str
    sentence: str
    seeds: int | None = None
    rows: int | None = None


def judge(differences: Mapping[str, Difference], metric: Metric, *, smallest_gain: float) -> Judgement:
    """Judges a chain by its differences from each control.

    The chain is worth it if its student is better than every control and no gain below `smallest_gain` explains that;
    it is not worth it if one control is certainly within `smallest_gain` of it, or better. Each of these errors has a
    probability of at most 2.5 %.

    Args:
        differences: the chain's student minus the control, by the control's name; each computed with the number of
            controls as `comparisons`.
        smallest_gain: the smallest gain that is worth the further stages, in the metric's unit.
    """
    gains = {name: Gain.of(found, metric) for name, found in differences.items()}
    beaten = [name for name, gain in gains.items() if gain.high < smallest_gain]
    if beaten:
        name = min(beaten, key=lambda each: gains[each].high)
        return Judgement(Outcome.NOT_WORTH_IT, name, _not_worth_it(name, differences[name], metric, gains[name]))
    # The control that comes closest to the chain decides.
    name = min(gains, key=lambda each: gains[each].low)
    if gains[name].low > 0:
        return Judgement(Outcome.WORTH_IT, name, _worth_it(name, differences[name], metric, len(gains)))
    return _undecided(name, differences[name], metric, gains[name], smallest_gain)


@dataclass(frozen=True)
class Gain:
    """A difference with its interval, positive where the chain is better."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, found: Difference, metric: Metric) -> Gain:
        """The gain that a difference of the metric means."""
        if metric.higher_is_better:
            return cls(found.value, found.low, found.high)
        return cls(-found.value, -found.high, -found.low)

    def distance_to_decision(self, smallest_gain: float) -> float:
        """How narrow the interval has to be on each side for a decision, if the difference stays what it is now."""
        return self.value if self.value >= smallest_gain else smallest_gain - self.value


def _worth_it(control: str, found: Difference, metric: Metric, controls: int) -> str:
    beside = f"{control}, the closer of the two controls" if controls > 1 else control
    return f"The chain is better than {beside} ({interval_words(found, metric)}): the steps in between paid."


def _not_worth_it(control: str, found: Difference, metric: Metric, gain: Gain) -> str:
    verb = "is better than the chain" if gain.high < 0 else "is as good as the chain"
    if gain.low > 0:
        verb = "comes so close to the chain that the gain is too small"
    return f"{control} {verb} ({interval_words(found, metric)}): the steps in between did not pay."


def _undecided(control: str, found: Difference, metric: Metric, gain: Gain, smallest_gain: float) -> Judgement:
    needed = gain.distance_to_decision(smallest_gain)
    seeds, rows = found.seeds_for(needed), found.rows_for(needed)
    if seeds and rows:
        remedy = f"about {seeds} seeds, or {rows:,} validation rows, would decide"
    elif seeds or rows:
        remedy = f"about {f'{seeds} seeds' if seeds else f'{rows:,} validation rows'} would decide"
    else:
        remedy = OUT_OF_REACH
    sentence = (
        f"The chain and {control} cannot be told apart ({interval_words(found, metric)}); the smallest difference that "
        f"these data would have shown is {_unsigned(found.detectable, metric)}: {remedy}."
    )
    return Judgement(Outcome.UNDECIDED, control, sentence, seeds, rows)


def interval_words(found: Difference, metric: Metric) -> str:
    """`difference +0.2 points, 95 % interval -0.4 to +0.8`: points of a share, otherwise the metric's unit."""
    return interval_text(found.value, found.low, found.high, metric)


def interval_text(value: float, low: float, high: float, metric: Metric) -> str:
    """The same from its numbers."""
    unit = " points" if metric.is_share else ""
    return f"difference {_signed(value, metric)}{unit}, 95 % interval {_signed(low, metric)} to {_signed(high, metric)}"


def _signed(value: float, metric: Metric) -> str:
    if metric.is_share:
        return f"{100 * value:+.1f}"
    return f"{'-' if value < 0 else '+'}{format_value(abs(value), metric)}"


def _unsigned(value: float, metric: Metric) -> str:
    return f"{100 * value:.1f} points" if metric.is_share else format_value(value, metric)
