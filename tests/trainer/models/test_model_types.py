"""Students with new weights: model types that classify text work, all others are refused before training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from distillchain_trainer.errors import CheckpointInvalid
from trainer.checkpoint_parts import DECODER, TINY, answers, build_student, load_student
from trainer.parts import save_bert, save_tokenizer

pytestmark = pytest.mark.models

SOME = "bert, roberta, distilbert, electra, deberta-v2, modernbert, gpt2, llama, qwen2 or bert-hash"
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
CONFIGS: dict[str, dict[str, Any]] = {
    "bert": TINY,
    "distilbert": {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 32},
    "gpt2": {"n_embd": 16, "n_layer": 1, "n_head": 2},
    "llama": DECODER,
    "modernbert": TINY,
    "bert-hash": TINY,
}
FIELD = "spec.stages[0].student.architecture"


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    return save_bert(tmp_path / "tokenizer")


@pytest.mark.parametrize("kind", ["vit", "whisper", "clip", "wav2vec2", "mamba", "llava", "longt5", "encoder-decoder", "time_series_transformer"])  # fmt: skip
def test_a_model_type_that_cannot_classify_text_is_refused(tokenizer: Path, kind: str):
    with pytest.raises(CheckpointInvalid) as failure:
        build_student(kind, tokenizer)

    assert str(failure.value) == (
        f"{FIELD}.modelType: got {kind}, which cannot classify text; use one that can, such as {SOME}"
    )


@pytest.mark.parametrize(
    "kind, config, why",
    [
        pytest.param("t5", T5, "classifies by its end token (eos_token_id 1), which this tokenizer does not put at the end of a text", id="t5"),
        pytest.param("mt5", T5, "classifies by its end token (eos_token_id 1), which this tokenizer does not put at the end of a text", id="mt5"),
        pytest.param("umt5", T5, "classifies by its end token (eos_token_id 1), which this tokenizer does not put at the end of a text", id="umt5"),
        pytest.param("bart", {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "eos_token_id": 5}, "classifies by its end token (eos_token_id 5), which this tokenizer does not put at the end of a text", id="bart with a word as end token"),
        pytest.param("xmod", TINY, "fails in a forward pass (ValueError: Input language unknown. Please call `XmodPreTrainedModel.set_default_language()`)", id="xmod needs a language"),
    ],
)  # fmt: skip
def test_a_model_type_that_fails_with_this_tokenizer_is_refused(
    tokenizer: Path, kind: str, config: dict[str, Any], why: str
):
    with pytest.raises(CheckpointInvalid) as failure:
        build_student(kind, tokenizer, **config)

    assert str(failure.value) == (
        f"{FIELD}.modelType: got {kind}: the model {why}; change its config or tokenizer, or use a model type such as {SOME}"
    )


@pytest.mark.parametrize(
    "kind, config",
    [
        pytest.param("layoutlmv2", {}, id="a package that is not installed"),
        pytest.param("reformer", {"hidden_size": 32}, id="sizes that do not fit"),
        pytest.param("jamba", {"hidden_size": 16, "num_hidden_layers": 1}, id="layers that do not work alone"),
        pytest.param("canine", TINY, id="texts that are too short for it"),
        pytest.param("roberta", {**TINY, "type_vocab_size": 0}, id="embeddings without rows"),
    ],
)
def test_whatever_fails_while_a_model_is_built_or_runs_names_the_field(
    tokenizer: Path, kind: str, config: dict[str, Any]
):
    with pytest.raises(CheckpointInvalid) as failure:
        build_student(kind, tokenizer, **config)

    assert str(failure.value).startswith(FIELD)
    assert kind in str(failure.value)


def test_an_unknown_model_type_is_answered_with_the_nearest(tokenizer: Path):
    with pytest.raises(CheckpointInvalid) as failure:
        build_student("bert-hsh", tokenizer)

    assert str(failure.value) == f"{FIELD}.modelType: got bert-hsh; did you mean bert_hash?"


def test_a_pretrained_t5_works_with_a_tokenizer_that_ends_each_text(tmp_path: Path):
    """The state at the end token is what T5 classifies by."""
    from tokenizers.processors import TemplateProcessing
    from transformers import T5Config, T5ForConditionalGeneration

    tokenizer = save_tokenizer(tmp_path / "t5")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A [SEP]", special_tokens=[("[SEP]", 3)])
    tokenizer.eos_token = "[SEP]"
    tokenizer.save_pretrained(tmp_path / "t5")
    config = T5Config(**T5, vocab_size=len(tokenizer), eos_token_id=3, decoder_start_token_id=0)
    T5ForConditionalGeneration(config).save_pretrained(tmp_path / "t5")

    student = load_student(tmp_path / "t5")

    assert answers(student, "bad", "a good film").shape == (2, 2)


def test_a_tokenizer_that_becomes_another_beside_the_model_is_refused(tokenizer: Path):
    with pytest.raises(CheckpointInvalid) as failure:
        build_student("qwen2", tokenizer, **DECODER)

    assert str(failure.value) == (
        f"spec.stages[0].student.tokenizer: file://{tokenizer}: saved with a qwen2, this tokenizer would be loaded as "
        "Qwen2Tokenizer and give other tokens; use the tokenizer of a qwen2 checkpoint, or another model type"
    )


def test_the_check_of_a_model_leaves_it_as_it_was(tokenizer: Path):
    """BigBird gives up its sparse attention at a short text, I-BERT notes the range of the values that it sees."""
    big_bird = build_student("big_bird", tokenizer, **TINY, max_position_embeddings=2048)
    ibert = build_student("ibert", tokenizer, **TINY, quant_mode=True)

    assert big_bird.model.bert.attention_type == "block_sparse"
    ranges = [buffer for name, buffer in ibert.model.named_buffers() if name.endswith(("x_min", "x_max"))]
    assert ranges
    assert all(buffer.abs().max() <= 1e-5 for buffer in ranges), "as they are initialised"


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_same_seed_gives_the_same_weights_whatever_happened_before(tokenizer: Path, kind: str):
    torch.manual_seed(3)
    config = CONFIGS[kind]
    first = build_student(kind, tokenizer, seed=7, **config)
    torch.rand(5)
    state = torch.get_rng_state()
    again, other = (build_student(kind, tokenizer, seed=seed, **config) for seed in (7, 8))

    weights, more, different = (student.model.state_dict() for student in (first, again, other))
    assert all(torch.equal(weights[name], more[name]) for name in weights)
    assert not all(torch.equal(weights[name], different[name]) for name in weights)
    assert torch.equal(torch.get_rng_state(), state), "random numbers of others do not change"
