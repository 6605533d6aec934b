"""Checkpoints as they are in practice: classes in another order, bfloat16, shards, other heads, hash embeddings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import (
    AutoModel,
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

from distillchain_trainer.engine.world import World
from distillchain_trainer.errors import CheckpointInvalid
from distillchain_trainer.models import bert_hash, memory
from distillchain_trainer.models.memory import Processes
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
from trainer.parts import LABELS, SMALL_BERT, an_order, run_here, save_bert, save_tokenizer

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


def test_an_architecture_that_does_not_fit_into_memory_is_refused_before_it_is_built(teacher: Path):
    limit = memory.memory_limit_bytes()
    assert limit is not None

    with pytest.raises(CheckpointInvalid) as refused:
        build_student("bert", teacher, hidden_size=1 << 20, num_attention_heads=1, intermediate_size=1 << 20)

    assert str(refused.value) == (
        "spec.stages[0].student.architecture: it has 80,265,058,713,602 parameters, which need 1,196,042.6 GiB (weights, "
        f"gradients and moments of AdamW in float32), and the memory limit is {limit / 2**30:,.1f} GiB; make the "
        "architecture smaller or raise the memory limit of the pod"
    )


def a_million_weights() -> torch.nn.Module:
    return torch.nn.Linear(1000, 1000, bias=False)


def test_each_process_of_a_node_needs_the_memory_of_the_model(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(memory, "memory_limit_bytes", lambda: 40_000_000)  # 2.5 times what one training needs
    memory.check_memory(a_million_weights, field="f", processes=Processes())
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    four = Processes.in_world(World(rank=5, size=8, local_rank=1), sharded=False)

    with pytest.raises(CheckpointInvalid) as refused:
        memory.check_memory(a_million_weights, field="f", processes=four)

    assert "in float32, in each of 4 processes), and" in str(refused.value)
    assert "make the architecture smaller, lower processesPerNode or raise" in str(refused.value)


def test_processes_that_split_a_model_need_its_memory_once_and_its_weights_on_the_first_node(
    monkeypatch: pytest.MonkeyPatch,
):
    """All of that is 16 bytes a weight, and the weights alone are 4."""
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    first, second = (Processes.in_world(World(rank=rank, size=8, local_rank=1), sharded=True) for rank in (1, 5))
    monkeypatch.setattr(memory, "memory_limit_bytes", lambda: 11_999_999)

    memory.check_memory(a_million_weights, field="f", processes=second)
    with pytest.raises(CheckpointInvalid) as refused:
        memory.check_memory(a_million_weights, field="f", processes=first)

    assert (
        "(4 of 8 parts of weights, gradients and moments of AdamW and all weights once, in float32), and the memory "
        "limit is 0.0 GiB; make the architecture smaller or raise"
    ) in str(refused.value)
    # With GPUs, the parts are on them.
    assert [node.needed_bytes(10**6, on_cpu=False) for node in (first, second)] == [4 * 10**6, 0]


def test_the_memory_limit_of_a_container_counts(tmp_path: Path):
    machine = memory.memory_limit_bytes(())
    (tmp_path / "v2").write_text("1048576\n")
    (tmp_path / "none").write_text("max\n")

    assert memory.memory_limit_bytes((tmp_path / "v2",)) == 1 << 20
    assert memory.memory_limit_bytes((tmp_path / "none", tmp_path / "absent")) == machine
