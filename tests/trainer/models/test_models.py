"""Checkpoints as they are in practice: classes in another order, bfloat16, shards, other heads, hash embeddings."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    GPT2Config,
    GPT2ForSequenceClassification,
    PerceiverConfig,
    RobertaConfig,
    RobertaForMaskedLM,
)

from distillchain_trainer.models.tokenizers import agree_on_padding, load_tokenizer
from distillchain_trainer.stage_warnings import StageWarnings
from distillchain_trainer.tasks.sequences.heads import SequenceModel
from trainer.checkpoint_parts import (
    answers,
    build_student,
    delete,
    edit_config,
    edit_weights,
    fetch,
    load_student,
    load_teacher,
    shard,
    weights_in,
    write,
)
from trainer.parts import LABELS, SMALL_BERT, an_order, read_json, run_here, save_bert, save_tokenizer
from trainer.tagging_parts import save_word_pieces

pytestmark = pytest.mark.models

THREE = ("the film is good and lovely", "bad", "a dull boring story with weak acting")
HEAD = ("classifier.weight", "classifier.bias")


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    return save_bert(tmp_path / "teacher")


def turn_round(folder: Path) -> None:
    """The same classifier with its classes in the other order."""
    edit_weights(lambda weights: weights.update({name: weights[name].flip(0) for name in HEAD}))(folder)
    edit_config(id2label={"0": "positive", "1": "negative"}, label2id={"positive": 0, "negative": 1})(folder)


def test_a_teacher_with_classes_in_another_order_answers_in_the_order_of_the_task(teacher: Path):
    want = answers(load_teacher(teacher), *THREE)
    turn_round(teacher)

    turned = load_teacher(teacher)

    assert turned.columns == (1, 0)
    np.testing.assert_allclose(answers(turned, *THREE), want, rtol=1e-6)


def test_a_student_with_classes_in_another_order_is_put_in_order(teacher: Path):
    want = answers(load_student(teacher), *THREE)
    turn_round(teacher)

    student = load_student(teacher)

    assert student.model.config.id2label == {0: "negative", 1: "positive"}
    assert student.columns is None
    np.testing.assert_allclose(answers(student, *THREE), want, rtol=1e-6)


def test_a_chain_whose_teacher_has_another_order_teaches_the_right_classes(root: Path):
    turn_round(root / "teacher")

    answer = run_here(an_order(root, training={"epochs": 8}), root)

    assert answer.teacher is not None
    assert answer.teacher.metrics.validation["accuracy"] > 0.9
    assert answer.student.metrics.validation["accuracy"] > 0.8


@pytest.mark.parametrize(
    "own",
    [
        pytest.param(None, id="only the tokenizer has one"),
        pytest.param(1, id="another special token"),
        pytest.param(7, id="an ordinary word"),
        pytest.param(-1, id="none of the vocabulary"),
    ],
)
@pytest.mark.parametrize("load", [load_teacher, load_student])
def test_a_decoder_is_padded_with_the_token_that_its_config_names(
    tmp_path: Path, own: int | None, load: Callable[[Path, StageWarnings], SequenceModel]
):
    """It pools the last token that is not that one, whatever the tokenizer pads with."""
    words = len(save_tokenizer(tmp_path))
    config = GPT2Config(vocab_size=words, n_positions=32, n_embd=16, n_layer=1, n_head=2, pad_token_id=own)
    config.id2label, config.label2id = dict(enumerate(LABELS)), {name: index for index, name in enumerate(LABELS)}
    torch.manual_seed(0)
    GPT2ForSequenceClassification(config).save_pretrained(tmp_path)
    warnings = StageWarnings()

    loaded = load(tmp_path, warnings)

    alone = [answers(loaded, text)[0] for text in THREE]
    np.testing.assert_allclose(answers(loaded, *THREE), alone, rtol=1e-4, atol=1e-6)
    assert ["pads with id 7 (movie), the tokenizer with id 0 ([PAD])" in text for text in warnings.sentences] == (
        [True] if own == 7 else []
    )


def test_a_config_without_padding_gets_the_tokenizers(teacher: Path):
    tokenizer, without = load_tokenizer(fetch(teacher)), PerceiverConfig()

    assert build_student("bert", teacher, **SMALL_BERT, pad_token_id=None).pad_id == 0
    assert not hasattr(without, "pad_token_id")
    agree_on_padding(tokenizer, without, what="f", warnings=StageWarnings())
    assert without.pad_token_id == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_become_float32(teacher: Path, dtype: torch.dtype):
    edit_weights(lambda weights: weights.update({name: weight.to(dtype) for name, weight in weights.items()}))(teacher)
    edit_config(dtype=str(dtype).removeprefix("torch."))(teacher)

    for loaded in (load_teacher(teacher), load_student(teacher)):
        assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.float32}


def test_sharded_weights_are_one_model(teacher: Path):
    want = answers(load_teacher(teacher), *THREE)
    shard(teacher)
    assert len(list(teacher.glob("*.safetensors"))) > 1

    np.testing.assert_allclose(answers(load_teacher(teacher), *THREE), want, rtol=1e-6)


@pytest.mark.parametrize(
    "extra",
    [
        pytest.param("bert.embeddings.position_ids", id="a buffer of older versions"),
        pytest.param("cls.predictions.bias", id="the head of its pretraining"),
        pytest.param("lm_head.weight", id="a language model's head"),
    ],
)
def test_weights_without_effect_may_be_left_over(teacher: Path, extra: str):
    want = answers(load_teacher(teacher), *THREE)
    edit_weights(lambda weights: weights.update({extra: torch.ones(1, 32)}))(teacher)

    np.testing.assert_allclose(answers(load_teacher(teacher), *THREE), want, rtol=1e-6)


def test_a_pooler_that_a_classifier_does_not_use_may_be_left_over(tmp_path: Path):
    """Classifiers of RoBERTa that older versions saved have one."""
    words = len(save_tokenizer(tmp_path))
    config = RobertaConfig(vocab_size=words, pad_token_id=0, id2label=dict(enumerate(LABELS)), **SMALL_BERT)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    edit_weights(lambda weights: weights.update({"roberta.pooler.dense.weight": torch.ones(16, 16)}))(tmp_path)

    assert load_teacher(tmp_path).named


def test_names_of_tensors_of_older_versions_are_known(teacher: Path):
    want = answers(load_teacher(teacher), *THREE)
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): weight
        for name, weight in weights_in(teacher).items()
    }
    save_file(old, teacher / "model.safetensors", metadata={"format": "pt"})

    np.testing.assert_allclose(answers(load_teacher(teacher), *THREE), want, rtol=1e-6)


@pytest.mark.parametrize("kind", [BertForMaskedLM, BertForPreTraining])
def test_a_pretrained_model_gets_a_new_head_and_the_new_weights_are_named(tmp_path: Path, kind: Any):
    words = len(save_tokenizer(tmp_path))
    source = kind(BertConfig(vocab_size=words, **SMALL_BERT))
    source.save_pretrained(tmp_path)
    warnings = StageWarnings()

    student = load_student(tmp_path, warnings)

    got = student.model.bert.encoder.layer[0].output.dense.weight
    torch.testing.assert_close(got, source.bert.encoder.layer[0].output.dense.weight)
    assert student.model.classifier.out_features == 2
    assert student.pretrained
    has_pooler = kind is BertForPreTraining
    new = ["classifier.bias", "classifier.weight"]
    if not has_pooler:
        new = ["bert.pooler.dense.bias", "bert.pooler.dense.weight", *new]
    else:
        torch.testing.assert_close(student.model.bert.pooler.dense.weight, source.bert.pooler.dense.weight)
    assert warnings.sentences == [
        f"spec.stages[0].student.model: file://{tmp_path} has no head for this task; these weights start new: "
        f"{', '.join(new)}"
    ]


def test_a_pooler_without_use_is_not_called_new(tmp_path: Path):
    words = len(save_tokenizer(tmp_path))
    RobertaForMaskedLM(RobertaConfig(vocab_size=words, pad_token_id=0, **SMALL_BERT)).save_pretrained(tmp_path)
    warnings = StageWarnings()

    load_student(tmp_path, warnings)

    assert warnings.sentences == [
        f"spec.stages[0].student.model: file://{tmp_path} has no head for this task; these weights start new: "
        "classifier.dense.bias, classifier.dense.weight, classifier.out_proj.bias, classifier.out_proj.weight"
    ]


@pytest.mark.parametrize("labels", [None, LABELS])
def test_a_student_may_have_the_tokenizer_of_another_checkpoint(
    tmp_path: Path, teacher: Path, labels: list[str] | None
):
    """Its own checkpoint then needs none, and one that it has is not read."""
    without = save_bert(tmp_path / "without", labels=labels)
    delete("tokenizer.json", "tokenizer_config.json")(without)
    broken = save_bert(tmp_path / "broken", labels=labels)
    write("tokenizer.json", "{")(broken)
    want = answers(load_student(save_bert(tmp_path / "whole", labels=labels)), *THREE)

    for folder in (without, broken):
        np.testing.assert_array_equal(answers(load_student(folder, tokenizer=teacher), *THREE), want)


def test_a_stage_uses_the_tokenizer_that_is_named(root: Path):
    start = save_bert(root / "start", labels=None)
    delete("tokenizer.json", "tokenizer_config.json")(start)
    student = {"model": f"file://{start}", "tokenizer": f"file://{root}/teacher"}

    answer = run_here(an_order(root, student=student, training={"epochs": 1}), root)

    saved = Path(answer.checkpoint.removeprefix("file://")) / "tokenizer.json"
    assert saved.read_text() == (root / "teacher/tokenizer.json").read_text()


def test_a_tokenizer_with_far_fewer_words_than_embeddings_is_reported(tmp_path: Path):
    folder = save_bert(tmp_path, vocabulary=100)
    save_tokenizer(folder)
    warnings = StageWarnings()

    load_teacher(folder, warnings)

    assert warnings.sentences == [
        f"spec.teacher.model: file://{folder}: the tokenizer has 38 words, the model has embeddings for 100; check that "
        "it is the tokenizer the model was trained with"
    ]


def test_a_tokenizer_that_transformers_reads_differently_from_its_file_is_reported(tmp_path: Path):
    folder, settings = save_bert(tmp_path, vocabulary=220), tmp_path / "tokenizer_config.json"
    save_word_pieces(folder)
    for kind, want in (("PreTrainedTokenizerFast", 0), ("BertTokenizerFast", 1)):
        # By default, a BertTokenizer makes texts lowercase, which this tokenizer.json does not.
        settings.write_text(json.dumps({**read_json(settings), "tokenizer_class": kind}))
        warnings = StageWarnings()

        load_teacher(folder, warnings)

        assert warnings.sentences == want * [
            f"spec.teacher.model: the tokenizer of file://{folder} is read as a BertTokenizer, which gives other tokens "
            "than its tokenizer.json; if the model was trained with those of tokenizer.json, write "
            "PreTrainedTokenizerFast as tokenizer_class into tokenizer_config.json (it has no effect on a qwen2)"
        ]


@pytest.mark.parametrize("load", [load_teacher, load_student])
def test_what_a_config_says_of_the_answer_of_a_model_costs_nothing(
    teacher: Path, load: Callable[[Path], SequenceModel]
):
    """Attentions of all layers of a batch of 65,536 tokens take more memory than a GPU has."""
    edit_config(return_dict=False, output_hidden_states=True, output_attentions=True)(teacher)

    loaded = load(teacher)

    answer = loaded.model(input_ids=torch.ones(1, 4, dtype=torch.long))
    assert list(answer) == ["logits"]


@pytest.mark.parametrize("field", ["attn_implementation", "_attn_implementation"])
def test_kernels_that_a_checkpoint_was_trained_with_need_not_be_installed(teacher: Path, field: str):
    edit_config(**{field: "flash_attention_2"})(teacher)

    assert load_teacher(teacher).model.config._attn_implementation == "sdpa"


def test_code_of_a_checkpoint_with_a_known_model_type_is_not_run_and_reported(teacher: Path):
    write("mine.py", "raise SystemExit('this code was run')")(teacher)
    edit_config(auto_map={"AutoModelForSequenceClassification": "mine.Model"})(teacher)
    warnings = StageWarnings()

    load_teacher(teacher, warnings)

    assert warnings.sentences == [
        f"spec.teacher.model: file://{teacher} brings code of its own (auto_map in config.json), which is not run: the "
        "bert of transformers is used instead"
    ]


def test_new_weights_follow_the_seed(tmp_path: Path):
    save_bert(tmp_path, labels=None)
    heads = [load_student(tmp_path, seed=seed).model.classifier.weight for seed in (1, 1, 2)]

    torch.testing.assert_close(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_a_new_pooler_follows_the_seed(tmp_path: Path):
    words = len(save_tokenizer(tmp_path))
    BertForMaskedLM(BertConfig(vocab_size=words, **SMALL_BERT)).save_pretrained(tmp_path)

    poolers = [load_student(tmp_path, seed=seed).model.bert.pooler.dense.weight for seed in (1, 1, 2)]

    torch.testing.assert_close(poolers[0], poolers[1])
    assert not torch.equal(poolers[0], poolers[2])


@pytest.mark.shared
def test_real_checkpoints_with_unnamed_classes_teach_and_learn(shared: Path, tmp_path: Path):
    data = tmp_path / "data"
    data.mkdir()
    for name, rows in (("train.tsv", 200), ("dev.tsv", 200)):
        lines = (shared / "data/sst2-glue" / name).read_text().split("\n")[: rows + 1]
        (data / name).write_text("\n".join(lines) + "\n")
    models = f"file://{shared}/models"
    order = an_order(
        tmp_path,
        teacher={"model": f"{models}/bert-tiny-splade-sst2-3ep", "gate": {"minMetric": 0.7}},
        student={"model": f"{models}/bert-hash-femto-imdb-mlm"},
        task={"maxLength": 64},
        training={"epochs": 1, "learningRate": 0.0003},
    )

    answer = run_here(order, tmp_path)

    assert answer.student.parameters == 242_662
    assert answer.pretrained
    assert answer.teacher is not None
    assert answer.teacher.parameters == 4_386_178
