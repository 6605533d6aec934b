"""The architecture bert_hash: its formula, its defaults, and the published model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
)

from distillchain_trainer.models import bert_hash
from trainer.checkpoint_parts import (
    build_student,
)
from trainer.parts import save_bert

pytestmark = pytest.mark.models


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    return save_bert(tmp_path / "teacher")


def test_the_default_bert_hash_is_femto(teacher: Path):
    student = build_student("bert-hash", teacher, vocab_size=30522)

    assert student.parameters == 242_662
    assert not student.pretrained
    assert student.model.bert.embeddings.word_embeddings.weight.shape == (30522, 5)


def test_new_words_of_bert_hash_are_as_large_as_positions(teacher: Path):
    embeddings = build_student("bert-hash", teacher, vocab_size=30522).model.bert.embeddings

    words = embeddings.word_projection(embeddings.word_embeddings.weight[1:])

    assert embeddings.word_projection.weight.std().item() == pytest.approx(5**-0.5, rel=0.2)
    assert words.std().item() == pytest.approx(embeddings.position_embeddings.weight.std().item(), rel=0.2)


def test_bert_hash_goes_round_through_the_auto_classes(tmp_path: Path):
    bert_hash.register()
    model = AutoModelForSequenceClassification.from_config(bert_hash.BertHashConfig(vocab_size=50, num_labels=3))
    model.eval()
    ids = torch.randint(1, 50, (2, 9))
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    model.save_pretrained(tmp_path)

    again = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    base, found = AutoModel.from_pretrained(tmp_path, output_loading_info=True)

    torch.testing.assert_close(again(ids, attention_mask=mask).logits, model(ids, attention_mask=mask).logits)
    short = again(ids[1:, :4], attention_mask=mask[1:, :4]).logits
    torch.testing.assert_close(again(ids, attention_mask=mask).logits[1:], short, msg="padding changes nothing")
    assert type(base).__name__ == "BertHashModel"
    assert not found["missing_keys"]


def test_bert_hash_is_the_written_formula(tmp_path: Path):
    embeddings = bert_hash.BertHashEmbeddings(bert_hash.BertHashConfig(vocab_size=20)).eval()
    ids, kinds = torch.tensor([[4, 9, 2]]), torch.tensor([[0, 1, 1]])

    words = embeddings.word_embeddings.weight[ids] @ embeddings.word_projection.weight.T
    summed = words + embeddings.word_projection.bias + embeddings.position_embeddings.weight[:3]
    summed = summed + embeddings.token_type_embeddings.weight[kinds]
    want = torch.nn.functional.layer_norm(
        summed, (50,), embeddings.LayerNorm.weight, embeddings.LayerNorm.bias, eps=1e-12
    )

    torch.testing.assert_close(embeddings(ids, kinds), want)


@pytest.mark.shared
def test_the_pretrained_femto_loads_whole(shared: Path):
    bert_hash.register()
    folder = shared / "models/bert-hash-femto-imdb-mlm"

    encoder, found = AutoModel.from_pretrained(folder, output_loading_info=True)
    _, with_head = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)

    assert sum(parameter.numel() for parameter in encoder.parameters()) == 242_560
    assert not found["missing_keys"]
    assert not found["unexpected_keys"]
    assert set(with_head["missing_keys"]) == {"classifier.weight", "classifier.bias"}
    assert not with_head["unexpected_keys"]
