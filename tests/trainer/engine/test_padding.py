"""A text gets the same answer alone and in any batch, whatever side its checkpoint's tokenizer pads on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distillchain_trainer.errors import CheckpointInvalid
from distillchain_trainer.stage_warnings import StageWarnings
from trainer.checkpoint_parts import (
    DECODER,
    TINY,
    answers,
    build_student,
    edit_json,
    load_student,
    load_teacher,
    save_classifier,
)
from trainer.parts import read_json, save_bert

pytestmark = pytest.mark.models

TEXTS = ("bad", "the film is good and lovely", "it was", "a dull boring story with weak acting and a poor plot")
ENCODER_DECODER = {
    "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 64, "eos_token_id": 3,
    "decoder_start_token_id": 3, "bos_token_id": 2, "forced_eos_token_id": None,
}  # fmt: skip
FAMILIES: list[tuple[str, dict[str, Any]]] = [
    ("gpt2", {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64, "eos_token_id": 3, "bos_token_id": 2}),
    ("opt", {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "ffn_dim": 32, "word_embed_proj_dim": 16}),
    ("llama", DECODER),
    ("mistral", DECODER),
    ("gpt_neox", TINY),
    ("bloom", {"hidden_size": 16, "n_layer": 1, "n_head": 2}),
    ("bert", TINY),
    ("roberta", {**TINY, "max_position_embeddings": 64}),
    ("distilbert", {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 32}),
    ("electra", {**TINY, "embedding_size": 16}),
    ("deberta-v2", {**TINY, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]}),
    ("modernbert", {**TINY, "cls_token_id": 2, "sep_token_id": 3}),
    ("bert_hash", TINY),
    ("bart", ENCODER_DECODER),
    ("xlnet", {"d_model": 16, "n_layer": 1, "n_head": 2, "d_inner": 32}),
]  # fmt: skip


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind, config", [pytest.param(*family, id=family[0]) for family in FAMILIES])
def test_answers_do_not_depend_on_the_batch(tmp_path: Path, kind: str, config: dict[str, Any], side: str):
    """GPT-2 counts positions from the left edge of the batch, XLNet pools the last column, BERT the first."""
    folder = save_classifier(tmp_path / "model", kind, **config)
    edit_json("tokenizer_config.json", padding_side=side)(folder)

    for loaded in (load_teacher(folder), load_student(folder)):
        alone = [answers(loaded, text)[0] for text in TEXTS]
        assert np.ptp(alone, axis=0).max() > 0.01, "different texts have different answers"
        np.testing.assert_allclose(answers(loaded, *TEXTS), alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "distilbert"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_saved_student_answers_in_a_pipeline_as_it_was_measured(tmp_path: Path, kind: str, side: str):
    from transformers import pipeline

    folder = save_classifier(tmp_path / "model", kind, **dict(FAMILIES)[kind])
    edit_json("tokenizer_config.json", padding_side=side)(folder)
    student = load_student(folder)
    student.model.save_pretrained(tmp_path / "saved")
    student.tokenizer.save_pretrained(tmp_path / "saved")

    classify = pipeline("text-classification", model=str(tmp_path / "saved"), top_k=None, batch_size=4)
    scores = [{item["label"]: item["score"] for item in row} for row in classify(list(TEXTS))]

    logits = answers(student, *TEXTS)
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose([[row["negative"], row["positive"]] for row in scores], shares, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "kind, own, side, used",
    [
        ("gpt2", "left", "left", "right"),
        ("xlnet", "right", "right", "left"),
        pytest.param("xlnet", None, "right", "left", id="xlnet-by default"),
    ],
)
def test_another_padding_side_is_reported_and_saved(tmp_path: Path, kind: str, own: str | None, side: str, used: str):
    folder = save_classifier(tmp_path / "model", kind, **dict(FAMILIES)[kind])
    edit_json("tokenizer_config.json", padding_side=own)(folder)
    warnings = StageWarnings()

    student = load_student(folder, warnings)
    student.tokenizer.save_pretrained(tmp_path / "saved")

    assert warnings.sentences == [
        f"spec.stages[0].student.model: file://{folder}: padding_side of the tokenizer is {side}; batches are padded "
        f"on the {used}, so that the answer for a text does not depend on the other texts in its batch"
    ]
    assert read_json(tmp_path / "saved/tokenizer_config.json")["padding_side"] == used


def test_a_model_that_mixes_in_padding_is_used_with_a_warning(tmp_path: Path):
    folder = save_bert(tmp_path / "tokenizer")
    warnings = StageWarnings()

    build_student("fnet", folder, warnings, hidden_size=16, num_hidden_layers=1, intermediate_size=32)

    assert warnings.sentences == [
        "spec.stages[0].student.architecture.modelType: got fnet: models of type fnet also read padding, so the answer "
        "for a text changes slightly with the other texts in its batch"
    ]


def test_a_model_whose_answers_depend_on_the_batch_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """No model type of transformers is known to, beside those that are warned of; one of them stands in for it."""
    from distillchain_trainer.tasks.sequences import working

    folder = save_bert(tmp_path / "tokenizer")
    monkeypatch.setattr(working, "MIXES_PADDING", ())

    with pytest.raises(CheckpointInvalid, match="with padding_side left and right alike"):
        build_student("fnet", folder, hidden_size=16, num_hidden_layers=1, intermediate_size=32)
