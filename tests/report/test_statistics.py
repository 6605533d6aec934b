"""Probabilities of the tests are those of scipy.stats, which the product does without."""

from __future__ import annotations

import re

import numpy as np
import pytest
from scipy.stats import binom, binomtest

from distillchain_report.statistics import heads_probability, sign_test
from docs.blocks import REPOSITORY


@pytest.mark.parametrize("tosses", [1, 2, 7, 100, 1029, 1030, 16_384])
def test_the_probability_of_heads_is_that_of_scipy(tosses: int):
    heads = np.arange(tosses + 1)

    found = heads_probability(heads, np.full_like(heads, tosses))

    np.testing.assert_allclose(found, binom.pmf(heads, tosses, 0.5), rtol=1e-10, atol=1e-300)
    assert found.sum() == pytest.approx(1)


def test_counts_of_several_coins_have_one_probability_each():
    heads, tosses = np.array([[0, 3], [1, 2]]), np.array([1, 4])

    np.testing.assert_allclose(heads_probability(heads, tosses), [[1 / 2, 4 / 16], [1 / 2, 6 / 16]])


@pytest.mark.parametrize("tosses", [1, 2, 9, 10, 1000, 1_000_000])
def test_the_sign_test_is_that_of_scipy(tosses: int):
    for heads in {0, 1, tosses // 2 - 1, tosses // 2, tosses // 2 + 1, tosses // 2 + int(tosses**0.5), tosses}:
        if 0 <= heads <= tosses:
            want = binomtest(heads, tosses, 0.5).pvalue
            assert sign_test(heads, tosses) == pytest.approx(want, rel=1e-9, abs=1e-300), heads


def test_no_toss_shows_nothing():
    assert sign_test(0, 0) == 1


@pytest.mark.parametrize("module", ["stats", "optimize"])
def test_no_page_or_stage_imports_slow_parts_of_scipy(module: str):
    """They would take a third to half a second more at the end of each chain, and of commands that draw a report."""
    packages = ("api", "store", "report", "trainer", "operator", "cli")
    sources = [path for package in packages for path in (REPOSITORY / package).rglob("*.py")]
    # The chance level of two metrics needs an assignment of classes, which scipy.special lacks.
    of_chance = {"assignment.py"} if module == "optimize" else set()

    found = {path.name for path in sources if re.search(rf"(from |\")scipy\.{module}\b", path.read_text())}
    assert found - of_chance == set()
