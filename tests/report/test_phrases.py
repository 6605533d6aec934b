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


def test_an_adapter_is_part_of_the_recipe_with_the_number_of_its_parameters():
    student = {"model": "hf://org/small", "lora": {"rank": 4, "alpha": 8, "targetModules": ["q_proj", "v_proj"]}}
    stage = SimpleNamespace(run=SimpleNamespace(recipe={"student": student}, trained_parameters=2048))

    want = "LoRA rank 4 alpha 8 target modules q_proj and v_proj (2,048 parameters trained)"
    assert recipe_parts(stage) == [want]  # type: ignore[arg-type]  # the rest is not read
