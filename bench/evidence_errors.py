"""Error rates of the comparison with controls, on simulated data with known truth.

    python bench/evidence_errors.py [--repeats 10000]

Two recipes without a difference are compared again and again. The table shows how often the test finds one anyway
(at most 5 %), how often the 95 % interval covers the truth, and how often a real difference of the smallest detectable
size is found (80 %). tests/report/evidence has the same in small.
"""

from __future__ import annotations

import argparse

import numpy as np

from distillchain_report.evidence.paired import SeedRuns, difference

# Interaction of recipe and row, spread of seeds, noise: from rows alone to seeds alone.
SPREADS = ((0.5, 0.0, 0.5), (0.5, 0.02, 0.5), (0.5, 0.1, 0.5), (0.3, 0.5, 0.3), (0.0, 0.05, 0.3))


def simulated(
    dice: np.random.Generator, *, rows: int, seeds: int, spread: tuple[float, float, float], binary: bool, effect: float
) -> list[SeedRuns]:
    interaction, seed, noise = spread
    # Binary: right and wrong answers of a classifier, most of them right.
    row = dice.normal(2.0, 2.0, rows) if binary else dice.normal(0.0, 1.0, rows)
    found = []
    for shift in (effect, 0.0):
        level = row + shift + dice.normal(0, interaction, rows) + dice.normal(0, seed, (seeds, 1))
        parts = level + dice.normal(0, noise, (seeds, rows))
        parts = (parts > 0).astype(float) if binary else parts
        found.append(SeedRuns(parts.mean(axis=1), parts))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=10_000)
    repeats = parser.parse_args().repeats
    print(f"{repeats} repeats; standard error of a rate of 5 %: {np.sqrt(0.05 * 0.95 / repeats):.4f}")
    print(
        "| answers | rows | seeds | interaction, seed, noise | false | covers | power |\n|---|---|---|---|---|---|---|"
    )
    dice = np.random.default_rng(0)
    for binary in (False, True):
        for rows in (200, 872):
            for seeds in (2, 3, 5):
                for spread in SPREADS:
                    size = {"rows": rows, "seeds": seeds, "spread": spread, "binary": binary}
                    found = [difference(*simulated(dice, **size, effect=0.0)) for _ in range(repeats)]
                    false = np.mean([each.p_value < 0.05 for each in found])
                    covers = np.mean([each.low <= 0 <= each.high for each in found])
                    power = "-"
                    if not binary:
                        effect = float(np.median([each.detectable for each in found]))
                        hits = [
                            difference(*simulated(dice, **size, effect=effect)).p_value < 0.05
                            for _ in range(repeats // 10)
                        ]
                        power = f"{np.mean(hits):.2f}"
                    kind = "right or wrong" if binary else "numbers"
                    print(
                        f"| {kind} | {rows} | {seeds} | {spread} | {false:.4f} | {covers:.4f} | {power} |", flush=True
                    )


if __name__ == "__main__":
    main()
