"""Numbers as the report writes them."""

from __future__ import annotations

import pytest

from distillchain_api.metrics import ACCURACY, MSE
from distillchain_report import words
from distillchain_report.model import Estimate, MetricFacts
from distillchain_report.sections.regression.details import RangeReport
from distillchain_report.sections.regression.view import range_words

ERROR, SHARE = MetricFacts.of(MSE), MetricFacts.of(ACCURACY)


@pytest.mark.parametrize(
    "value, want",
    [(18004.4993, "18004"), (1_700_000_128.0, "1700000128"), (12.3456, "12.35"), (7.00139e-07, "7.001e-07"), (0, "0")],
)
def test_a_number_keeps_all_digits_before_the_decimal_point(value: float, want: str):
    assert words.measured(value, ERROR) == want
    assert words.measured_change(value, ERROR) == f"+{want}"
    if value:
        assert words.measured_change(-value, ERROR) == f"-{want}"


def test_neighbouring_ranges_of_large_numbers_can_be_told_apart():
    found = RangeReport(low=1_699_999_400.0, high=1_699_999_872.0, rows=24, predicted=0, bias=0, error=0)

    assert range_words(found) == "1699999400 to 1699999872"
    assert words.measured_range(Estimate(value=2, low=13414.4, high=21231.5), ERROR) == "13414–21232"


def test_a_share_has_three_decimals():
    assert words.measured(0.89, SHARE) == "0.890"
    assert words.measured_change(-0.0125, SHARE) == "-0.013"
    assert words.measured(None, SHARE) == words.measured(None, ERROR) == "–"


def test_no_difference_is_detectable_where_it_would_have_to_exceed_the_range_of_a_share():
    assert [words.detectable(value, SHARE) for value in (0.05, 4.8)] == ["0.050", "none"]
    assert words.detectable(4.8, ERROR) == "4.8"
