"""Checkpoints as they really are: classes turned round, bf16, shards, other heads, hash embeddings."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2ForSequenceClassification,
    PerceiverConfig,
)

from distillchain_api.resource.spec import Architecture
from distillchain_api.tasks.text_classification import TextClassification as Task
from distillchain_store.folder import FileStore
from distillchain_trainer.engine.encode import Encoder
from distillchain_trainer.engine.teacher_logits import TeacherLogits, _write_part, teacher_logits
from distillchain_trainer.errors import CheckpointInvalid, LabelMismatch
from distillchain_trainer.models import bert_hash
from distillchain_trainer.models.checkpoints import Checkpoint, fetch_checkpoint
from distillchain_trainer.tasks.text_classification.evaluate import measure
from distillchain_trainer.tasks.text_classification.labels import ClassOrder, match_classes
from distillchain_trainer.tasks.text_classification.models import (
    Loaded,
    build_student,
    load_student,
    load_teacher,
    load_tokenizer,
)
from distillchain_trainer.tasks.text_classification.rows import Split, key_of
from trainer.parts import LABELS, SMALL_BERT, an_order, read_json, run_here, save_bert, save_tokenizer, sentences

pytestmark = pytest.mark.models


def fetch(folder: Path) -> Checkpoint:
    return fetch_checkpoint(
        f"file://{folder}", field="spec.teacher.model", endpoint_url=None, region=None, folder=folder / "unused"
    )


@pytest.fixture
def task(root: Path) -> Task:
    return an_order(root).task


def a_split(*texts: str) -> Split:
    return Split("validation", [(text,) for text in texts], [0] * len(texts), [key_of((text,)) for text in texts])


THREE = ("the film is good and lovely", "bad", "a dull boring story with weak acting")


def answers(loaded: Loaded, task: Task, *texts: str) -> Any:
    """Logits of some sentences in the order of the task."""
    split = a_split(*(texts or THREE))
    encoded = Encoder(task.max_length).encode(split, loaded.tokenizer, pad_id=loaded.pad_id)
    return measure(
        loaded.model, split, encoded, columns=loaded.order.columns, precision="float32", on_batch=lambda *_: None
    ).logits


def turn_round(folder: Path) -> None:
    """The same classifier with its classes in the other order."""
    weights = load_file(folder / "model.safetensors")
    for name in ("classifier.weight", "classifier.bias"):
        weights[name] = weights[name].flip(0).contiguous()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = read_json(folder / "config.json")
    config["id2label"] = {"0": "positive", "1": "negative"}
    config["label2id"] = {"positive": 0, "negative": 1}
    (folder / "config.json").write_text(json.dumps(config))


def test_a_teacher_whose_classes_are_turned_round_answers_in_the_order_of_the_task(root: Path, task: Task):
    want = answers(load_teacher(fetch(root / "teacher"), task), task)
    turn_round(root / "teacher")

    turned = load_teacher(fetch(root / "teacher"), task)

    assert turned.order.columns == (1, 0)
    np.testing.assert_allclose(answers(turned, task), want, rtol=1e-6)


def test_a_student_whose_classes_are_turned_round_is_put_in_order(root: Path, task: Task):
    want = answers(load_student(fetch(root / "teacher"), task, tokenizer=None, seed=1), task)
    turn_round(root / "teacher")

    student = load_student(fetch(root / "teacher"), task, tokenizer=None, seed=1)

    assert student.model.config.id2label == {0: "negative", 1: "positive"}
    np.testing.assert_allclose(answers(student, task), want, rtol=1e-6)


def test_a_chain_with_a_turned_teacher_teaches_the_right_classes(root: Path):
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
@pytest.mark.parametrize("load", [load_teacher, functools.partial(load_student, tokenizer=None, seed=1)])
def test_a_decoders_answer_does_not_depend_on_what_else_is_in_the_batch(
    tmp_path: Path, task: Task, own: int | None, load: Callable[[Checkpoint, Task], Loaded]
):
    """It pools at the last token that its config does not call padding, whatever the tokenizer calls so."""
    words = len(save_tokenizer(tmp_path))
    config = GPT2Config(vocab_size=words, n_positions=32, n_embd=16, n_layer=1, n_head=2, pad_token_id=own)
    config.id2label, config.label2id = dict(enumerate(LABELS)), {name: index for index, name in enumerate(LABELS)}
    torch.manual_seed(0)
    GPT2ForSequenceClassification(config).save_pretrained(tmp_path)

    loaded = load(fetch(tmp_path), task)

    alone = [answers(loaded, task, text)[0] for text in THREE]
    np.testing.assert_allclose(answers(loaded, task, *THREE), alone, rtol=1e-4, atol=1e-6)


def test_a_config_that_knows_no_padding_gets_the_tokenizers(root: Path, task: Task):
    tokenizer = fetch(root / "teacher")
    config = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    null = Architecture(model_type="bert", config={**config, "pad_token_id": None})

    assert build_student(null, tokenizer, task, seed=1, field="f").pad_id == 0
    without = PerceiverConfig()
    assert not hasattr(without, "pad_token_id")
    load_tokenizer(tokenizer, without, task)
    assert without.pad_token_id == 0


def test_weights_in_bfloat16_become_float32(root: Path, task: Task):
    weights = load_file(root / "teacher/model.safetensors")
    halves = {name: weight.bfloat16() for name, weight in weights.items()}
    save_file(halves, root / "teacher/model.safetensors", metadata={"format": "pt"})
    config = read_json(root / "teacher/config.json") | {"dtype": "bfloat16"}
    (root / "teacher/config.json").write_text(json.dumps(config))

    for loaded in (
        load_teacher(fetch(root / "teacher"), task),
        load_student(fetch(root / "teacher"), task, tokenizer=None, seed=1),
    ):
        assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.float32}


def test_sharded_weights_are_one_model(root: Path, task: Task):
    want = answers(load_teacher(fetch(root / "teacher"), task), task)
    model = AutoModelForSequenceClassification.from_pretrained(root / "teacher")
    (root / "teacher/model.safetensors").unlink()
    model.save_pretrained(root / "teacher", max_shard_size="4KB")
    assert len(list((root / "teacher").glob("*.safetensors"))) > 1

    np.testing.assert_allclose(answers(load_teacher(fetch(root / "teacher"), task), task), want, rtol=1e-6)


def test_a_masked_language_model_gets_a_new_head_and_pooler(root: Path, task: Task):
    words = len(save_tokenizer(root / "mlm"))
    source = BertForMaskedLM(BertConfig(vocab_size=words, **SMALL_BERT))
    source.save_pretrained(root / "mlm")

    student = load_student(fetch(root / "mlm"), task, tokenizer=None, seed=1)

    got = student.model.bert.encoder.layer[0].output.dense.weight
    torch.testing.assert_close(got, source.bert.encoder.layer[0].output.dense.weight)
    assert student.model.classifier.out_features == 2
    assert student.pretrained


def test_new_weights_follow_the_seed(root: Path, task: Task):
    save_bert(root / "encoder", labels=None)
    heads = [
        load_student(fetch(root / "encoder"), task, tokenizer=None, seed=seed).model.classifier.weight
        for seed in (1, 1, 2)
    ]

    torch.testing.assert_close(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_the_default_bert_hash_is_femto(root: Path, task: Task):
    architecture = Architecture(model_type="bert-hash", config={"vocab_size": 30522})

    student = build_student(architecture, fetch(root / "teacher"), task, seed=1, field="spec.stages[0].student")

    assert student.parameters == 242_662
    assert not student.pretrained
    assert student.model.bert.embeddings.word_embeddings.weight.shape == (30522, 5)


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


def test_a_split_is_encoded_once_for_all_who_read_texts_alike(root: Path, task: Task):
    """Encoding changes a tokenizer's own settings, and a saved one may hold those of who saved it."""
    loaded, again = (load_teacher(fetch(root / "teacher"), task).tokenizer for _ in range(2))
    again.backend_tokenizer.enable_truncation(7)
    split = a_split("a good film", "bad")
    encoder = Encoder(task.max_length)

    first = encoder.encode(split, loaded, pad_id=0)

    assert encoder.encode(split, loaded, pad_id=0) is first
    assert encoder.encode(split, again, pad_id=0) is first
    again.truncation_side = "left"
    assert encoder.encode(split, again, pad_id=0) is not first, "another end of a long text is cut"
    assert loaded.backend_tokenizer.truncation is None
    assert again.backend_tokenizer.truncation["max_length"] == 7, "what is saved with it is as it was"


def test_every_row_gets_its_own_logits_also_where_texts_repeat(root: Path, task: Task, tmp_path: Path):
    """More rows than one batch, of many lengths; they are computed in order of length and equal texts once."""
    texts = [text for text, _ in sentences(100, 4)]
    split = a_split(*texts, *reversed(texts[:30]))
    loaded = load_teacher(fetch(root / "teacher"), task)
    encoder = Encoder(task.max_length)
    one_by_one = [
        measure(
            loaded.model,
            a_split(text),
            Encoder(task.max_length).encode(a_split(text), loaded.tokenizer, pad_id=loaded.pad_id),
            columns=(0, 1),
            precision="float32",
            on_batch=lambda *_: None,
        ).logits[0]
        for (text,) in split.texts
    ]
    (tmp_path / "parts").mkdir()
    computed: list[int] = []

    answer = teacher_logits(
        FileStore(f"file://{tmp_path}/logits"),
        "0" * 64,
        loaded.model,
        split,
        encoder.encode(split, loaded.tokenizer, pad_id=loaded.pad_id),
        given=fetch(root / "teacher"),
        classes=2,
        precision="float32",
        folder=tmp_path / "parts",
        save_interval_s=0.0,
        stop=lambda: False,
        on_batch=lambda done, _: computed.append(done),
    )

    np.testing.assert_allclose(answer.logits, one_by_one, rtol=1e-4, atol=1e-5)
    assert computed[-1] == len(set(texts))


def test_logits_that_are_no_numbers_are_neither_kept_nor_used(root: Path, task: Task, tmp_path: Path):
    """The key of what is kept holds neither device nor version: a bad moment of one would stay for ever."""
    store = FileStore(f"file://{tmp_path}/logits")
    loaded, split = load_teacher(fetch(root / "teacher"), task), a_split("good", "bad")
    (tmp_path / "parts").mkdir()

    def teach(model: Any) -> TeacherLogits:
        encoded = Encoder(task.max_length).encode(split, loaded.tokenizer, pad_id=loaded.pad_id)
        return teacher_logits(
            store, "0" * 64, model, split, encoded, given=fetch(root / "teacher"), classes=2, precision="float32",
            folder=tmp_path / "parts", save_interval_s=0.0, stop=lambda: False, on_batch=lambda *_: None,
        )  # fmt: skip

    broken = copy.deepcopy(loaded.model)
    with torch.no_grad():
        broken.classifier.bias.fill_(float("nan"))
    with pytest.raises(CheckpointInvalid, match="outputs on validation are not numbers"):
        teach(broken)
    assert store.list_objects("") == []

    _write_part(store, "0" * 64, {split.keys[0]: np.full(2, np.nan, dtype=np.float32)}, tmp_path / "parts")
    answer = teach(loaded.model)

    assert np.isfinite(answer.logits).all()
    assert not answer.reused


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


@pytest.mark.parametrize(
    "names, want",
    [
        pytest.param(["negative", "positive"], ClassOrder((0, 1), named=True), id="as the task"),
        pytest.param(["positive", "negative"], ClassOrder((1, 0), named=True), id="turned round"),
        pytest.param(["POSITIVE", "NEGATIVE"], ClassOrder((1, 0), named=True), id="another case"),
        pytest.param(["LABEL_0", "LABEL_1"], ClassOrder((0, 1), named=False), id="unnamed"),
    ],
)
def test_classes_are_matched_by_name(names: list[str], want: ClassOrder):
    assert match_classes(names, LABELS, who="teacher x") == want


def test_names_that_differ_only_in_case_from_two_labels_match_none():
    with pytest.raises(LabelMismatch):
        match_classes(["A", "b"], ["a", "B", "c"], who="teacher x")
    assert match_classes(["a", "A"], ["A", "a"], who="teacher x").columns == (1, 0)
