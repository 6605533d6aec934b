"""Whether the steps of a chain paid: the chain's last student against controls, as one of three outcomes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from distillchain_api.metrics import Metric, format_value
from distillchain_api.resource.evidence import MAX_SEEDS, Control, Outcome
from distillchain_report.evidence.paired import MAX_ROWS_FACTOR, Difference

FROM_ROOT: Control = "FromRoot"
TEACHING, STEPS = "teaching", "the steps in between"
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

    The chain is worth it if its student is certainly better than every control, and by at least `smallest_gain` as far
    as can be measured. It is not worth it if one control is certainly within `smallest_gain` of it, or better. So
    WorthIt for a chain that is no better, and NotWorthIt for one that gains `smallest_gain`, have a probability of at
    most 2.5 % each. WorthIt for a chain that gains a little less than `smallest_gain` is more probable than that.

    The whole interval decides. The sentence shows its part that the metric allows.

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
    if all(gain.pays(smallest_gain) for gain in gains.values()):
        name = min(gains, key=lambda each: gains[each].low)
        return Judgement(Outcome.WORTH_IT, name, _worth_it(name, differences[name], metric, list(gains)))
    name = min((each for each in gains if not gains[each].pays(smallest_gain)), key=lambda each: gains[each].low)
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

    def pays(self, smallest_gain: float) -> bool:
        """Whether it is certainly a gain, and measured to be as large as the smallest one that matters."""
        return self.low > 0 and self.value >= smallest_gain

    def distance_to_decision(self, smallest_gain: float) -> float:
        """How narrow the interval has to be on each side for a decision, if the difference stays what it is now."""
        return self.value if self.value >= smallest_gain else smallest_gain - self.value


def compared_words(controls: Sequence[str]) -> str:
    """What the chain has and the controls lack: Direct has no teacher, FromRoot no steps in between."""
    if FROM_ROOT not in controls:
        return TEACHING
    return STEPS if len(controls) == 1 else f"{TEACHING} and {STEPS}"


def _worth_it(control: str, found: Difference, metric: Metric, controls: Sequence[str]) -> str:
    beside = f"{control}, the closer of the two controls" if len(controls) > 1 else control
    return f"The chain is better than {beside} ({interval_words(found, metric)}): {compared_words(controls)} paid."


def _not_worth_it(control: str, found: Difference, metric: Metric, gain: Gain) -> str:
    verb = "is better than the chain" if gain.high < 0 else "is as good as the chain"
    if gain.low > 0:
        verb = "comes so close to the chain that the gain is too small"
    return f"{control} {verb} ({interval_words(found, metric)}): {compared_words([control])} did not pay."


def _undecided(control: str, found: Difference, metric: Metric, gain: Gain, smallest_gain: float) -> Judgement:
    needed = gain.distance_to_decision(smallest_gain)
    seeds, rows = found.seeds_for(needed), found.rows_for(needed)
    if seeds and rows:
        remedy = f"about {seeds} seeds, or {rows:,} validation rows, would decide"
    elif seeds or rows:
        remedy = f"about {f'{seeds} seeds' if seeds else f'{rows:,} validation rows'} would decide"
    else:
        remedy = OUT_OF_REACH
    if gain.low > 0:
        sentence = (
            f"The chain is better than {control} ({interval_words(found, metric)}), but perhaps by less than the "
            f"smallest gain, {_unsigned(smallest_gain, metric)}: {remedy}."
        )
    else:
        detectable = (
            f"the smallest difference that these data would have shown is {_unsigned(found.detectable, metric)}"
        )
        if found.detectable > metric.largest_difference:
            detectable = "these data would not have shown any difference, however large"
        sentence = (
            f"The chain and {control} cannot be told apart ({interval_words(found, metric)}); {detectable}: {remedy}."
        )
    return Judgement(Outcome.UNDECIDED, control, sentence, seeds, rows)


def interval_words(found: Difference, metric: Metric) -> str:
    """`difference +0.2 points, 95 % interval -0.4 to +0.8`: points of a share, otherwise the metric's unit."""
    return interval_text(found.value, *metric.possible_differences(found.low, found.high), metric)


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
