"""Checkpoints of the quick start: old files become current ones, and what does not load is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest
from errors import CheckpointError


def test_old_tensor_names_become_current_ones_and_the_position_constant_is_dropped() -> None:
    old: dict[str, np.ndarray[Any, Any]] = {
        "bert.embeddings.LayerNorm.gamma": np.ones(2, np.float32),
        "cls.predictions.transform.LayerNorm.beta": np.zeros(2, np.float32),
        "embeddings.position_ids": np.arange(4),
        "bert.encoder.layer.0.output.dense.weight": np.eye(2, dtype=np.float32),
    }
    want_names = {
        "bert.embeddings.LayerNorm.weight",
        "cls.predictions.transform.LayerNorm.bias",
        "bert.encoder.layer.0.output.dense.weight",
    }
    assert checkpoints.modern_weights(old).keys() == want_names


def test_only_truncation_and_padding_of_the_tokenizer_are_removed() -> None:
    saved = {
        "version": "1.0",
        "truncation": {"max_length": 512},
        "padding": {"pad_id": 0},
        "model": {"vocab": {"a": 0}},
    }
    assert checkpoints.plain_tokenizer(saved) == {**saved, "truncation": None, "padding": None}


class PartlyLoaded:
    """Replaces a transformers class that found its file incomplete, because the real files are complete."""

    @classmethod
    def from_pretrained(cls, folder: Path, *, output_loading_info: bool) -> tuple[PartlyLoaded, dict[str, set[str]]]:
        missing = {"classifier.weight", "encoder.layer.3.output.dense.bias"}
        return cls(), {"missing_keys": missing, "unexpected_keys": {"heads.0"}, "mismatched_keys": set()}


def test_a_checkpoint_that_does_not_load_completely_names_the_tensors(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as raised:
        checkpoints.load_completely(PartlyLoaded, tmp_path / "tiny", may_be_new=("classifier.",), may_be_left=())
    assert str(raised.value) == (
        "tiny: does not load completely as PartlyLoaded: "
        "missing_keys encoder.layer.3.output.dense.bias, unexpected_keys heads.0"
    )
