"""The second half of the histories of test_histories.py, for the other core."""

from __future__ import annotations

import pytest

from simulation.checking import first_broken


@pytest.mark.slow
@pytest.mark.parametrize("first", range(1_000, 2_000, 100))
def test_no_history_breaks_an_invariant(first: int):
    assert first_broken(range(first, first + 100)) is None
