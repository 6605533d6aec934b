"""No history breaks an invariant (namespace.py, kubernetes.py, history.py). The others are in test_more_histories.py.

To look at one: `PYTHONPATH=tests python -m simulation --first SEED --histories 1`.
"""

from __future__ import annotations

import pytest

from simulation.checking import first_broken

SAMPLE = 20


def test_a_sample_of_the_histories_breaks_no_invariant():
    assert first_broken(range(SAMPLE)) is None


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, 1_000, 100))
def test_no_history_breaks_an_invariant(first: int):
    assert first_broken(range(first, first + 100)) is None
