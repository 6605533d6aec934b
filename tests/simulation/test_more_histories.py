"""The second half of the histories of test_histories.py, for the other core. The last ones have exports."""

from __future__ import annotations

import pytest

from simulation.checking import first_broken


@pytest.mark.slow
@pytest.mark.parametrize("first", range(1_000, 1_700, 100))
def test_no_history_breaks_an_invariant(first: int):
    assert first_broken(range(first, first + 100)) is None


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, 300, 100))
def test_no_history_with_exports_and_damaged_checkpoints_breaks_an_invariant(first: int):
    assert first_broken(range(first, first + 100), has_exports=True) is None
