"""The comparison of two recipes: hand-computed values, and its error rates on simulated data with known truth."""

import itertools

import numpy as np
import pytest
from scipy import optimize, stats

from distillchain_report.evidence.paired import SeedRuns, difference, mean_interval, row_interval


def runs(parts):
    parts = np.asarray(parts, dtype=float)
    return SeedRuns(parts.mean(axis=1), parts)


def simulated(dice, *, rows, seeds, effect=0.0, interaction=0.5, seed=(0.05, 0.05), noise=0.5):
    """Two recipes with `effect` between them; `seed` is the spread of each."""
    row = dice.normal(0, 1, rows)
    return [
        runs(
            row
            + shift
            + dice.normal(0, interaction, rows)
            + dice.normal(0, spread, (seeds, 1))
            + dice.normal(0, noise, (seeds, rows))
        )
        for shift, spread in zip((effect, 0.0), seed, strict=True)
    ]


def simulated_answers(dice, *, rows, seeds, interaction, seed, noise):
    """Right and wrong answers, most of them right, of two recipes that are equally often right."""
    row = dice.normal(2, 2, rows)
    # More spread of a recipe would bring its share nearer to a half; a higher level makes up for it.
    width = [np.sqrt(4 + interaction**2 + spread**2 + noise**2) for spread in seed]
    return [
        runs(
            row
            + 2 * (own / width[0] - 1)
            + dice.normal(0, interaction, rows)
            + dice.normal(0, spread, (seeds, 1))
            + dice.normal(0, noise, (seeds, rows))
            > 0
        )
        for own, spread in zip(width, seed, strict=True)
    ]


def test_by_hand():
    # Two seeds and four rows each. Per row the difference is 2, 0, 2, 0; its mean square is 4/3.
    first, second = runs([[3, 1, 3, 1], [3, 1, 3, 1]]), runs([[1, 1, 1, 1], [1, 1, 1, 1]])
    found = difference(first, second)
    error = np.sqrt(4 / 3 / 4)
    assert found.value == 1
    assert found.low == pytest.approx(1 - stats.t.ppf(0.975, 3) * error)
    assert found.p_value == pytest.approx(2 * stats.t.sf(1 / error, 3))
    assert found.detectable == pytest.approx((stats.t.ppf(0.975, 3) + stats.t.ppf(0.8, 3)) * error)


def test_seeds_count_also_where_rows_agree():
    # All rows of a student are alike: a test over rows alone would find an interval of no width.
    first, second = runs([[0.0] * 50, [2.0] * 50]), runs([[0.0] * 50, [0.0] * 50])
    found = difference(first, second)
    assert found.low < 0 < found.high
    assert found.p_value == pytest.approx(0.5)  # a t-test of two against two means with one degree of freedom


def test_identical_answers_differ_by_nothing():
    same = runs([[1, 0, 1], [1, 1, 0]])
    found = difference(runs([[1, 1], [1, 1]]), runs([[1, 1], [1, 1]]))
    assert (found.value, found.p_value, found.low, found.high) == (0, 1, 0, 0)
    assert difference(same, same).p_value == 1


def test_a_metric_that_is_better_when_lower_is_only_mirrored():
    dice = np.random.default_rng(3)
    first, second = simulated(dice, rows=50, seeds=3, effect=0.4)
    there, back = difference(first, second), difference(second, first)
    assert (back.value, back.low, back.high) == pytest.approx((-there.value, -there.high, -there.low))


def test_variance_components_are_found():
    dice = np.random.default_rng(4)
    found = [difference(*simulated(dice, rows=300, seeds=5)).spread for _ in range(200)]
    # Of both recipes together: twice the variance of each.
    assert np.mean([each.rows for each in found]) == pytest.approx(2 * 0.5**2, rel=0.03)
    assert np.mean([each.noise for each in found]) == pytest.approx(2 * 0.5**2, rel=0.03)
    assert np.mean([each.seeds for each in found]) == pytest.approx(2 * 0.05**2, rel=0.1)


@pytest.mark.parametrize(
    ("seeds", "spread"),
    list(
        itertools.product(
            (2, 3, 5),
            (
                (0.5, (0.0, 0.0), 0.5),
                (0.5, (0.05, 0.05), 0.5),
                (0.3, (0.5, 0.5), 0.3),
                (0.0, (0.05, 0.05), 0.3),
                # The seeds of one recipe differ much more than those of the other.
                (0.3, (0.0, 0.2), 0.1),
            ),
        )
    ),
)
@pytest.mark.parametrize("simulate", [simulated, simulated_answers])
def test_error_rates(simulate, seeds, spread):
    """Without a difference, at most 5 % are called significant; a 95 % interval covers the truth."""
    dice, repeats = np.random.default_rng(5), 400
    interaction, seed, noise = spread
    found = [
        difference(*simulate(dice, rows=150, seeds=seeds, interaction=interaction, seed=seed, noise=noise))
        for _ in range(repeats)
    ]
    false = sum(each.p_value < 0.05 for each in found)
    covered = sum(each.low <= 0 <= each.high for each in found)
    assert false + covered == repeats
    # Three standard errors above 5 %; the bench has more repeats.
    assert false / repeats < 0.05 + 3 * np.sqrt(0.05 * 0.95 / repeats)


def test_many_seeds_of_one_recipe_do_not_make_up_for_few_of_the_other():
    dice, repeats, false = np.random.default_rng(5), 400, 0
    for _ in range(repeats):
        first, second = simulated(dice, rows=200, seeds=8, seed=(0.02, 0.2), interaction=0.3)
        found = difference(first, runs(second.parts[:2]))
        false += found.p_value < 0.05

    assert false / repeats < 0.05 + 3 * np.sqrt(0.05 * 0.95 / repeats)


def test_the_detectable_difference_is_found_four_times_of_five():
    dice = np.random.default_rng(6)
    size = {"rows": 400, "seeds": 5}
    typical = np.median([difference(*simulated(dice, **size)).detectable for _ in range(200)])
    found = [difference(*simulated(dice, **size, effect=typical)).p_value < 0.05 for _ in range(500)]
    assert 0.72 < np.mean(found) < 0.88


def test_more_seeds_or_rows_narrow_the_interval_as_foretold():
    dice = np.random.default_rng(7)
    found = difference(*simulated(dice, rows=200, seeds=3, seed=(0.2, 0.2)))
    half = (found.high - found.low) / 2
    seeds = found.seeds_for(half / 2)
    assert seeds
    many = [difference(*simulated(dice, rows=200, seeds=seeds, seed=(0.2, 0.2))) for _ in range(100)]
    assert np.median([(each.high - each.low) / 2 for each in many]) < half
    # Rows do not help against the spread of seeds.
    assert found.rows_for(half / 4) is None


def test_no_more_seeds_are_named_than_a_chain_can_have():
    dice = np.random.default_rng(7)
    found = difference(*simulated(dice, rows=200, seeds=3, seed=(0.2, 0.2)))
    named = [found.seeds_for(share * (found.high - found.low)) for share in np.linspace(0.02, 0.5, 49)]

    assert named[0] is None
    assert 15 < max(seeds for seeds in named if seeds) <= 20


def test_noise_leaves_a_degree_of_freedom():
    dice = np.random.default_rng(8)
    found = [
        difference(*simulated(dice, rows=30, seeds=2, interaction=0.0, seed=(0.001, 0.001), noise=1.0))
        for _ in range(300)
    ]
    assert all(np.isfinite([each.low, each.high, each.p_value, each.detectable]).all() for each in found)


@pytest.mark.parametrize("effect", [0.0, 0.2])
@pytest.mark.parametrize("seeds", [2, 3, 20])
def test_the_p_value_is_that_of_the_interval_which_ends_at_zero(seeds, effect):
    first, second = simulated(np.random.default_rng(seeds), rows=200, seeds=seeds, effect=effect)
    found = difference(first, second)
    variance = [runs.values.var(ddof=1) / seeds for runs in (first, second)]
    freedom = max(seeds - 1, (seeds - 1) * sum(variance) ** 2 / sum(part**2 for part in variance) - 0.5)
    rows = ((found.high - found.low) / 2) ** 2 - stats.t.ppf(0.975, freedom) ** 2 * sum(variance)

    def margin(tail):
        of_rows = rows / stats.t.ppf(0.975, 199) ** 2
        return np.sqrt(stats.t.isf(tail, 199) ** 2 * of_rows + stats.t.isf(tail, freedom) ** 2 * sum(variance))

    want = optimize.brentq(lambda tail: margin(tail) - abs(found.value), 1e-12, 0.5, xtol=1e-15)
    assert found.p_value == pytest.approx(2 * want, abs=1e-9)


def test_too_little_to_compare_is_refused():
    with pytest.raises(ValueError, match="at least two of each"):
        runs([[1, 0, 1]])
    with pytest.raises(ValueError, match="expected the same rows"):
        difference(runs(np.ones((2, 3))), runs(np.ones((2, 4))))


def test_intervals_of_several_comparisons_cover_together():
    dice = np.random.default_rng(5)
    # Whether at least one of two intervals of unrelated controls misses the truth, which is no difference.
    runs = [[SeedRuns(each.mean(axis=1), each) for each in dice.normal(0, 1, (3, 3, 100))] for _ in range(800)]
    alone, together = (
        np.mean(
            [
                any(
                    not found.low <= 0 <= found.high
                    for found in (difference(chain, other, comparisons=comparisons) for other in controls)
                )
                for chain, *controls in runs
            ]
        )
        for comparisons in (1, 2)
    )

    assert together <= 0.05
    assert alone > together


def test_several_comparisons_widen_the_interval_and_the_detectable_difference():
    dice = np.random.default_rng(5)
    chain, control = (SeedRuns(each.mean(axis=1), each) for each in dice.normal(0, 1, (2, 3, 200)))
    one, two = (difference(chain, control, comparisons=comparisons) for comparisons in (1, 2))

    assert two.value == one.value
    assert two.high - two.low > one.high - one.low
    assert two.detectable > one.detectable
    assert two.p_value == min(1.0, 2 * one.p_value)
    assert (two.seeds_for(0.09) or 99) > (one.seeds_for(0.09) or 99)


def test_rows_that_all_agree_leave_the_interval_of_a_share_open():
    right = runs(np.ones((3, 60)))

    own, single = mean_interval(right, row_unit=1.0), row_interval(np.zeros(60), 0.0, row_unit=1.0)

    # The rule of three: about 3.5 rows on each side.
    assert own == pytest.approx((1 - 3.5 / 60, 1 + 3.5 / 60), rel=0.01)
    assert single == pytest.approx((-3.5 / 60, 3.5 / 60), rel=0.05)


def test_the_interval_of_one_recipe_covers_its_mean():
    dice, repeats = np.random.default_rng(2), 400
    # The mean over all rows and seeds that there could be is 0.
    found = [mean_interval(simulated(dice, rows=150, seeds=3)[0]) for _ in range(repeats)]

    covered = np.mean([low <= 0 <= high for low, high in found])
    assert 0.93 < covered <= 1.0
    low, high = found[0]
    assert low < high
