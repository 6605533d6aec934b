"""How a recipe is written in one line."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from distillchain_report.phrases import recipe_parts


@pytest.mark.parametrize(
    "distillation, want",
    [
        pytest.param({"parameters": {"beta": 0.3}}, "parameters beta 0.3", id="numbers of an objective"),
        pytest.param(
            {"hidden": {"objective": "HiddenMSE", "weight": 0.5, "layers": [{"student": 2, "teacher": 6}]}},
            "hidden HiddenMSE (weight 0.5 layers student 2 teacher 6)",
            id="a loss on hidden states",
        ),
    ],
)
def test_values_inside_of_values_are_written_in_words(distillation: dict[str, Any], want: str):
    stage = SimpleNamespace(run=SimpleNamespace(recipe={"training": {"epochs": 3}, "distillation": distillation}))

    assert recipe_parts(stage) == ["epochs 3", want]  # type: ignore[arg-type]  # the rest is not read
