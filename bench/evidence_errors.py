"""Error rates of the comparison with controls, on simulated data with known truth.

    python bench/evidence_errors.py [--repeats 5000]

A chain is compared with two controls that are no worse, again and again. The table shows how often the test finds a
difference from the first one anyway (`false`), or from one of both with the correction for two (`of two`): at most 5 %;
how often the 95 % interval covers the truth; and how often a real difference of the typical detectable size is found
(about 80 %). tests/report/evidence has the same in small.
"""

from __future__ import annotations

import argparse
import itertools
from typing import Any

import numpy as np

from distillchain_report.evidence.paired import SeedRuns, difference

Spread = tuple[float, tuple[float, float], float]

# Interaction of recipe and row, spread of seeds of the chain and of the controls, noise.
SPREADS: tuple[Spread, ...] = (
    (0.5, (0.0, 0.0), 0.5),
    (0.5, (0.02, 0.02), 0.5),
    (0.5, (0.1, 0.1), 0.5),
    (0.3, (0.5, 0.5), 0.3),
    (0.0, (0.05, 0.05), 0.3),
    (0.3, (0.0, 0.2), 0.1),
    (0.3, (0.3, 0.03), 0.1),
)


def simulated(
    dice: np.random.Generator, *, rows: int, seeds: int, spread: Spread, binary: bool, effect: float = 0.0
) -> list[SeedRuns]:
    """A chain and two controls; the chain is better by `effect`."""
    interaction, (own, other), noise = spread
    # Binary: right and wrong answers of a classifier, most of them right.
    row = dice.normal(2.0, 2.0, rows) if binary else dice.normal(0.0, 1.0, rows)
    found = []
    for shift, seed in ((effect, own), (0.0, other), (0.0, other)):
        if binary:  # equally often right, although more spread brings the share nearer to a half
            widths = (np.sqrt(4 + interaction**2 + each**2 + noise**2) for each in (seed, own))
            shift += 2 * (next(widths) / next(widths) - 1)
        level = row + shift + dice.normal(0, interaction, rows) + dice.normal(0, seed, (seeds, 1))
        parts = level + dice.normal(0, noise, (seeds, rows))
        parts = (parts > 0).astype(float) if binary else parts
        found.append(SeedRuns(parts.mean(axis=1), parts))
    return found


def rates(dice: np.random.Generator, repeats: int, **size: Any) -> list[str]:
    """The cells of one line."""
    false, of_two, covers, detectable = (np.zeros(repeats) for _ in range(4))
    for number in range(repeats):
        chain, *controls = simulated(dice, **size)
        found = difference(chain, controls[0])
        false[number], covers[number] = found.p_value < 0.05, found.low <= 0 <= found.high
        of_two[number] = any(difference(chain, each, comparisons=2).p_value < 0.05 for each in controls)
        detectable[number] = found.detectable
    shown = [f"{each.mean():.4f}" for each in (false, of_two, covers)]
    if size["binary"]:
        return [*shown, "-"]
    effect = float(np.median(detectable))
    pairs = (simulated(dice, **size, effect=effect)[:2] for _ in range(repeats // 10))
    return [*shown, f"{np.mean([difference(*pair).p_value < 0.05 for pair in pairs]):.2f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5_000)
    repeats = parser.parse_args().repeats
    print(f"{repeats} repeats; standard error of a rate of 5 %: {np.sqrt(0.05 * 0.95 / repeats):.4f}")
    print("| answers | rows | seeds | interaction, seeds, noise | false | of two | covers | power |")
    print("|---|---|---|---|---|---|---|---|")
    dice = np.random.default_rng(0)
    for binary, rows, seeds, spread in itertools.product((False, True), (200, 872), (2, 3, 5), SPREADS):
        cells = rates(dice, repeats, rows=rows, seeds=seeds, spread=spread, binary=binary)
        kind = "right or wrong" if binary else "numbers"
        print(f"| {' | '.join([kind, str(rows), str(seeds), str(spread), *cells])} |", flush=True)


if __name__ == "__main__":
    main()
