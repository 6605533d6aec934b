"""Which output of a model stands for which class, by how well they fit."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray


def best_assignment(fits: NDArray[Any]) -> tuple[tuple[int, ...], float]:
    """For each row of `fits` one column, each once, so that the sum is highest; and that sum."""
    from scipy.optimize import linear_sum_assignment  # takes half a second to import, and few stages need it

    rows, columns = linear_sum_assignment(fits, maximize=True)
    return tuple(int(column) for column in columns), float(fits[rows, columns].sum())
