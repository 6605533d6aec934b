"""Gates and chance, in numbers and whole sentences."""

from __future__ import annotations

from typing import Any

import pytest

from distillchain_api.chain import Gate
from distillchain_trainer.errors import GateNotMet
from distillchain_trainer.gates import chance_to_beat, check_student, share


@pytest.mark.parametrize(
    "value, beside, want",
    [
        (0.612, 0.9, "0.612"),
        (0.9, None, "0.90"),
        (1.0, None, "1.00"),
        (0.05, None, "0.05"),
        (0.89999, 0.9, "0.89999"),
        (0.8990825688, 0.9, "0.8991"),
    ],
)
def test_a_share_never_reads_as_the_gate_it_misses(value: float, beside: float | None, want: str):
    assert share(value, beside) == want


def test_chance_of_two_equal_classes():
    reached, needed = chance_to_beat([0, 1] * 50, count=2, metric="accuracy")

    assert reached == 0.5
    assert needed == pytest.approx(0.5 + 1.645 * 0.05)


def test_chance_of_macro_f1_is_that_of_the_most_frequent_class():
    # Always "0" of 80 and 20: precision 0.8, recall 1, F1 0.8889; the other class 0; the mean 0.4444.
    reached, _ = chance_to_beat([0] * 80 + [1] * 20, count=2, metric="macroF1")

    assert reached == pytest.approx(0.4444, abs=1e-4)


@pytest.mark.parametrize(
    "value, gate, want",
    [
        pytest.param(0.70, {"min_metric": 0.79}, "stage tiny: accuracy 0.70 is under spec.stages[1].gate.minMetric 0.79; train it better or lower the gate: KEPT", id="too low"),
        pytest.param(0.80, {"max_drop": 0.05}, "stage tiny: accuracy 0.80 is 0.11 below its teacher's 0.91, more than spec.stages[1].gate.maxDrop 0.05; step down less, train it better or raise the gate: KEPT", id="too far down"),
        pytest.param(0.86, {"max_drop": 0.05}, None, id="as far down as it may"),
        pytest.param(0.79, {"min_metric": 0.79}, None, id="just enough"),
        pytest.param(0.0, {}, None, id="no gate"),
    ],
)  # fmt: skip
def test_a_student_holds_its_gate_or_is_told_why(value: float, gate: dict[str, Any], want: str | None):
    def check() -> None:
        check_student("tiny", "spec.stages[1]", value, metric="accuracy", gate=Gate(**gate), teacher=0.91, kept="KEPT")

    if want is None:
        check()
    else:
        with pytest.raises(GateNotMet) as failure:
            check()
        assert str(failure.value) == want
