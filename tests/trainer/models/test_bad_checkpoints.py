"""Checkpoints that are refused, each with a message that names what is wrong and what to do."""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from distillchain_trainer.errors import CheckpointInvalid, LabelMismatch
from trainer.checkpoint_parts import (
    LFS_POINTER,
    LORA,
    Edit,
    both,
    build_student,
    delete,
    edit_config,
    edit_json,
    edit_weights,
    load_student,
    load_teacher,
    shard,
    weights_in,
    write,
)
from trainer.parts import SMALL_BERT, save_bert, save_tokenizer

pytestmark = pytest.mark.models

HEAD = ("classifier.weight", "classifier.bias")
LAYER = "bert.encoder.layer.0.output.dense.weight"
MERGE = (
    "it is an adapter (such as LoRA) of another model and would be ignored; merge it into its base with peft's "
    "merge_and_unload(), save the result with save_pretrained(), and use that folder"
)


def pickled(folder: Path) -> None:
    torch.save(weights_in(folder), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def cut_short(size: int) -> Edit:
    def cut(folder: Path) -> None:
        content = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(content[:size])

    return cut


def compressed(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(gzip.compress(content))


def zipped(folder: Path) -> None:
    torch.save(weights_in(folder), folder / "model.safetensors")


def unreadable(folder: Path) -> None:
    """A folder in its place stands in for a file of another user: root may read everything."""
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").mkdir()


def without_a_shard(folder: Path) -> None:
    shard(folder)
    (folder / "model-00002-of-00005.safetensors").unlink()


def old_and_new_weights(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    shard(folder)
    (folder / "model.safetensors").write_bytes(whole)


def again(labels: list[str] | None) -> Edit:
    def save(folder: Path) -> None:
        shutil.rmtree(folder)
        save_bert(folder, labels=labels)

    return save


def not_finite(value: float) -> Edit:
    return edit_weights(lambda weights: weights["classifier.bias"].fill_(value))


def other_vocabulary(folder: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "film", "the"]
    (folder / "vocab.txt").write_text("\n".join(words))


FILES = [
    pytest.param(pickled, "{f}: {t} has only pickled weights (pytorch_model.bin), which can run code when loaded; save it with save_pretrained(safe_serialization=True) or name a revision with safetensors", id="pickled weights"),
    pytest.param(both(delete("model.safetensors"), write("training_args.bin", b"")), "{f}: {t} has no weights; expected model.safetensors, or model.safetensors.index.json and its parts", id="no weights"),
    pytest.param(both(delete("model.safetensors"), write("model.gguf", b"GGUF")), "{f}: {t} has no weights (found model.gguf); expected model.safetensors, or model.safetensors.index.json and its parts", id="weights of another format"),
    pytest.param(delete("config.json"), "{f}: {t} has no config.json; expected a checkpoint in Hugging Face format", id="no config"),
    pytest.param(shutil.rmtree, "{f}: {t} does not exist; expected a folder with config.json and weights", id="no such folder"),
    pytest.param(unreadable, "{f}: {t} cannot be read (Is a directory); name a place that the trainer's user may read", id="a file that may not be read"),
    pytest.param(LORA, "{f}: {t} has adapter_config.json: " + MERGE, id="adapter beside its base"),
    pytest.param(both(LORA, delete("model.safetensors", "config.json")), "{f}: {t} has adapter_config.json: " + MERGE, id="adapter alone"),
    pytest.param(both(write("adapter_model.bin", b""), delete("model.safetensors")), "{f}: {t} has adapter_model.bin: " + MERGE, id="weights of an adapter"),
    pytest.param(without_a_shard, "{f}: {t}/model-00002-of-00005.safetensors is missing, but {t}/model.safetensors.index.json lists it as a part of the weights; copy the checkpoint again", id="a shard missing"),
    pytest.param(both(shard, write("model.safetensors.index.json", '{"weight_map": {"a": "../a.safetensors"}}')), "{f}: {t}/model.safetensors.index.json: weight_map must give a file with a name in .safetensors for each tensor; copy the checkpoint again", id="an index that points elsewhere"),
    pytest.param(both(shard, write("model.safetensors.index.json", "[]")), "{f}: {t}/model.safetensors.index.json is not a JSON object", id="an index that is no index"),
    pytest.param(old_and_new_weights, "{f}: {t} has both model.safetensors and model.safetensors.index.json, which are two versions of the weights; delete the old one", id="old and new weights"),
    pytest.param(both(delete("model.safetensors"), lambda folder: (folder / "model.safetensors").symlink_to("../blobs/0a1b")), "{f}: {t}/model.safetensors is a link to a file that does not exist, as in a snapshot of the hub's cache that was copied without its blobs; copy what the links lead to (cp -rL)", id="a link to a blob that is not there"),
    pytest.param(write("model.safetensors", LFS_POINTER), "{f}: {t}/model.safetensors is a Git LFS pointer, a short text in place of the file; run git lfs pull in the clone that it comes from, and copy it again", id="LFS pointer as weights"),
    pytest.param(write("tokenizer.json", LFS_POINTER), "{f}: {t}/tokenizer.json is a Git LFS pointer, a short text in place of the file; run git lfs pull in the clone that it comes from, and copy it again", id="LFS pointer as tokenizer"),
    pytest.param(compressed, "{f}: {t}/model.safetensors is not a safetensors file: it is a gzip file; decompress it", id="compressed weights"),
    pytest.param(zipped, "{f}: {t}/model.safetensors is not a safetensors file: it is a zip archive, as torch.save writes; save the model with save_pretrained", id="a pickle named safetensors"),
    pytest.param(write("model.safetensors", "<html>403</html>"), "{f}: {t}/model.safetensors is not a safetensors file: it is an HTML or XML page, such as the error page of a failed download; download the file again", id="an error page as weights"),
    pytest.param(write("model.safetensors", b""), "{f}: {t}/model.safetensors is not a safetensors file: it is empty; copy the checkpoint again", id="empty weights"),
    pytest.param(cut_short(1000), "{f}: {t}/model.safetensors is cut short within its header; copy the checkpoint again", id="weights cut short in their header"),
    pytest.param(write("config.json", "{"), "{f}: {t}/config.json is not JSON (Expecting property name enclosed in double quotes: line 1 column 2 (char 1)); copy the checkpoint again", id="config that is no JSON"),
    pytest.param(write("config.json", '{"a": ' + "[" * 100_000), "{f}: {t}/config.json is not JSON (maximum recursion depth exceeded while decoding a JSON array from a unicode string); copy the checkpoint again", id="config that is nested deeply"),
]  # fmt: skip

TOKENIZERS = [
    pytest.param(delete("tokenizer.json"), "{f}: {t} has no tokenizer; put the tokenizer.json (or vocab.txt) it was trained with into the same folder", id="no tokenizer"),
    pytest.param(both(delete("tokenizer.json"), write("spiece.model", b"\n")), "{f}: {t} has its tokenizer only as spiece.model, which this trainer does not read; load it with AutoTokenizer where sentencepiece is installed and save it with save_pretrained, which writes tokenizer.json", id="sentencepiece alone"),
    pytest.param(both(delete("tokenizer.json"), write("vocab.json", "{}")), "{f}: {t} has vocab.json without merges.txt; add merges.txt or tokenizer.json", id="half of a byte-level tokenizer"),
    pytest.param(edit_json("tokenizer_config.json", auto_map={"AutoTokenizer": ["mine.Tokenizer", None]}), "{f}: the tokenizer of {t} needs code of its own (auto_map in tokenizer_config.json), which is never run; save it as a fast tokenizer of transformers with save_pretrained and remove auto_map", id="tokenizer with code of its own"),
    pytest.param(other_vocabulary, '{f}: the tokenizer of {t}: tokenizer.json and vocab.txt disagree: "film" has id 5 in one and 4 in the other; delete the file that does not belong to the model', id="two vocabularies"),
    pytest.param(lambda folder: save_tokenizer(folder, more_words=9), "{f}: the tokenizer has 47 words, the model {t} has embeddings for 38; use the tokenizer it was trained with", id="another tokenizer"),
    pytest.param(both(edit_json("tokenizer_config.json", tokenizer_class="RobertaTokenizer"), delete("tokenizer.json"), write("vocab.txt", "[PAD]\n[UNK]\ngood")), "{f}: the tokenizer of {t} has no words except its special tokens; its files are not those of a RobertaTokenizer: add the tokenizer.json it was trained with", id="files of another tokenizer class"),
]  # fmt: skip

CONFIGS = [
    pytest.param(edit_config(model_type="mine", auto_map={"AutoConfig": "mine.Config"}), "{f}: {t} needs code of its own (auto_map in config.json), which is never run; use an architecture of transformers or bert_hash", id="remote code"),
    pytest.param(edit_config(model_type="brt"), '{f}: {t} is of model_type "brt", which is not known here; use an architecture of transformers or bert_hash', id="unknown architecture"),
    pytest.param(edit_config(model_type="vit"), "{f}: {t} is a vit, which cannot classify text; use a model type that can, such as bert, roberta, distilbert, electra, deberta-v2, modernbert, gpt2, llama, qwen2 or bert-hash", id="a model of images"),
    pytest.param(edit_config(quantization_config={"quant_method": "bitsandbytes"}), "{f}: {t} is quantized (quantization_config in config.json: bitsandbytes), and quantized weights cannot be trained or compared here; use the checkpoint from before its quantization", id="quantization config"),
    pytest.param(edit_weights(lambda weights: weights.update({LAYER: weights[LAYER].to(torch.int8)})), "{f}: {t}/model.safetensors: " + LAYER + " is quantized (I8); use the checkpoint from before its quantization", id="quantized tensor"),
    pytest.param(edit_config(problem_type="multi_label_classification"), "{f}: config.json of {t}: problem_type: got multi_label_classification, expected single_label_classification; TextClassification needs a model that was trained to choose one class for each text; this one fits task type MultiLabelClassification", id="several classes for each text"),
    pytest.param(edit_config(problem_type="regression"), "{f}: config.json of {t}: problem_type: got regression, expected single_label_classification; TextClassification needs a model that was trained to choose one class for each text; this one fits task type Regression", id="regression"),
    pytest.param(edit_config(id2label={"0": "LABEL_0"}, label2id={"LABEL_0": 0}), "{f}: config.json of {t}: num_labels: got 1, expected a class for each of spec.task.labels; a head with one output is a regression", id="one output"),
    pytest.param(edit_config(id2label={"1": "negative", "2": "positive"}), "{f}: config.json of {t}: id2label: got the numbers 1, 2, expected 0 to 1", id="classes counted from 1"),
    pytest.param(edit_config(num_labels=3), "{f}: config.json of {t}: num_labels is 3, but id2label has 2 classes; correct one", id="another number of classes in num_labels"),
    pytest.param(edit_config(label2id={"negative": 1, "positive": 0}), "{f}: config.json of {t}: id2label says that class 0 is negative, label2id says that negative is 1; correct the one that is wrong", id="contradicting class names"),
    pytest.param(edit_config(hidden_act="nope"), "{f}: the weights of {t} cannot be loaded: KeyError: 'nope'; copy the checkpoint again, and see that config.json and weights belong together", id="an unknown activation"),
    pytest.param(edit_config(id2label={"negative": "0", "positive": "1"}), '{f}: {t}: config.json: id2label: got {{"negative": "0", "positive": "1"}}, expected a name for each number, such as {{"0": "negative", "1": "positive"}}', id="id2label that is label2id"),
    pytest.param(edit_config(hidden_size="x"), "{f}: config.json of {t} cannot be read: TypeError: Field 'hidden_size' expected int, got str (value: 'x'); correct that field, or copy the checkpoint again", id="a field of another type"),
]  # fmt: skip

WEIGHTS = [
    pytest.param(edit_weights(lambda weights: weights.pop(LAYER)), "{f}: {t} lacks weights of its own architecture (" + LAYER + "); copy the checkpoint again, and see that config.json and weights belong together", id="a tensor missing"),
    pytest.param(edit_weights(lambda weights: weights.update({f"_orig_mod.{name}": weights.pop(name) for name in [*weights]})), "{f}: the tensors of {t} have the names of a wrapped model, such as _orig_mod.bert.embeddings.LayerNorm.bias instead of bert.embeddings.LayerNorm.bias; save the model within the wrapper (of torch.compile or DataParallel, for example) with save_pretrained()", id="names of torch.compile"),
    pytest.param(edit_weights(lambda weights: weights.pop("classifier.bias")), "{f}: {t} lacks weights of its own architecture (classifier.bias); copy the checkpoint again, and see that config.json and weights belong together", id="half of the head missing"),
    pytest.param(edit_config(num_hidden_layers=0), None, id="fewer layers in config.json"),
    pytest.param(edit_weights(lambda weights: weights.update({"bert.adapter.weight": torch.ones(2)})), "{f}: config.json and weights of {t} do not belong together: the weights have bert.adapter.weight, for which config.json has no place; copy both from one checkpoint", id="a tensor too many"),
    pytest.param(edit_weights(lambda weights: weights.update({"classifier.dense.weight": torch.ones(2)})), "{f}: config.json and weights of {t} do not belong together: the weights have classifier.dense.weight, for which config.json has no place; copy both from one checkpoint", id="a head of two layers"),
    pytest.param(edit_weights(lambda weights: weights.update({LAYER.replace("weight", "lora_A.weight"): torch.ones(2)})), "{f}: {t} has weights of an adapter (" + LAYER.replace("weight", "lora_A.weight") + "); merge it into its base with peft's merge_and_unload() and save the result with save_pretrained()", id="an adapter that was not merged"),
    pytest.param(edit_config(vocab_size=60), "{f}: config.json and weights of {t} do not belong together: bert.embeddings.word_embeddings.weight is [38, 16] in the weights and [60, 16] by config.json; copy both from one checkpoint", id="another vocabulary in config.json"),
    pytest.param(edit_weights(lambda weights: weights.update({"classifier.weight": torch.ones(3, 16), "classifier.bias": torch.ones(3)})), "{f}: config.json and weights of {t} do not belong together: classifier.bias is [3] in the weights and [2] by config.json; copy both from one checkpoint", id="a head of three classes under two names"),
    pytest.param(not_finite(float("nan")), "{f}: {t}: classifier.bias has values that are not numbers (NaN or infinite); copy the checkpoint again, or use one from before its training diverged", id="NaN"),
    pytest.param(not_finite(float("-inf")), "{f}: {t}: classifier.bias has values that are not numbers (NaN or infinite); copy the checkpoint again, or use one from before its training diverged", id="infinite"),
]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_bert(tmp_path / "model")


@pytest.mark.parametrize("spoil, want", [*FILES, *TOKENIZERS, *CONFIGS, *WEIGHTS])
def test_a_bad_teacher_is_refused(folder: Path, spoil: Edit, want: str | None):
    spoil(folder)

    with pytest.raises(CheckpointInvalid) as failure:
        load_teacher(folder)

    if want:
        assert str(failure.value) == want.format(f="spec.teacher.model", t=f"file://{folder}")


@pytest.mark.parametrize("spoil, want", [*FILES, *TOKENIZERS, *CONFIGS, *WEIGHTS])
def test_a_student_with_a_head_is_refused_for_the_same_reasons(folder: Path, spoil: Edit, want: str | None):
    spoil(folder)

    with pytest.raises(CheckpointInvalid) as failure:
        load_student(folder)

    if want:
        assert str(failure.value) == want.format(f="spec.stages[0].student.model", t=f"file://{folder}")


@pytest.mark.parametrize("lost", [1, 4000, 10_000])
def test_weights_that_are_cut_short_are_refused_with_both_sizes(folder: Path, lost: int):
    whole = (folder / "model.safetensors").stat().st_size
    size = whole - lost
    cut_short(size)(folder)

    with pytest.raises(CheckpointInvalid) as failure:
        load_teacher(folder)

    assert str(failure.value) == (
        f"spec.teacher.model: file://{folder}/model.safetensors has {size:,} bytes, but by its header it should have "
        f"{whole:,}; copy the checkpoint again"
    )


def test_weights_with_more_layers_than_config_json_are_refused(tmp_path: Path):
    folder = save_bert(tmp_path / "model", num_hidden_layers=3)
    edit_config(num_hidden_layers=1)(folder)

    with pytest.raises(CheckpointInvalid) as failure:
        load_teacher(folder)

    assert str(failure.value) == (
        f"spec.teacher.model: config.json and weights of file://{folder} do not belong together: the weights have "
        "bert.encoder.layer.1.attention.output.LayerNorm.bias, bert.encoder.layer.1.attention.output.LayerNorm.weight, "
        "bert.encoder.layer.1.attention.output.dense.bias, bert.encoder.layer.1.attention.output.dense.weight and 28 "
        "more, for which config.json has no place; copy both from one checkpoint"
    )


@pytest.mark.parametrize(
    "spoil, named",
    [
        pytest.param(edit_config(num_hidden_layers=1), "encoder.layer.1.", id="more layers than in config.json"),
        pytest.param(edit_weights(lambda weights: weights.pop("encoder.layer.0.output.dense.bias")), "encoder.layer.0.output.dense.bias", id="a tensor missing"),
        pytest.param(edit_weights(lambda weights: weights["embeddings.LayerNorm.bias"].fill_(float("nan"))), "embeddings.LayerNorm.bias", id="NaN"),
        pytest.param(edit_config(hidden_size=32), "embeddings.LayerNorm.bias is [16] in the weights and [32]", id="another width in config.json"),
        pytest.param(edit_config(model_type="t5", num_layers=1), "lacks weights of its own architecture (decoder.block.0.", id="another model type in config.json"),
        pytest.param(LORA, "adapter_config.json", id="adapter"),
        pytest.param(edit_config(quantization_config={"quant_method": "gptq"}), "gptq", id="quantization config"),
    ],
)  # fmt: skip
def test_a_student_that_gets_a_new_head_needs_a_whole_encoder(tmp_path: Path, spoil: Edit, named: str):
    folder = save_bert(tmp_path / "model", labels=None, num_hidden_layers=2)
    spoil(folder)

    with pytest.raises(CheckpointInvalid) as failure:
        load_student(folder)

    assert str(failure.value).startswith("spec.stages[0].student.model: ")
    assert named in str(failure.value)


@pytest.mark.parametrize(
    "labels, want",
    [
        pytest.param(["bad", "so-so", "good"], "spec.teacher.model: the head of {t} has 3 classes (bad, so-so, good), spec.task.labels has 2 (negative, positive); correct spec.task.labels, or use a checkpoint of this task", id="another number of classes"),
        pytest.param(["bad", "good"], "spec.teacher.model: the classes of {t} are bad, good, spec.task.labels are negative, positive; write spec.task.labels as its id2label has them, or use a checkpoint of this task", id="other class names"),
    ],
)  # fmt: skip
def test_a_teacher_of_other_classes_is_refused(tmp_path: Path, labels: list[str], want: str):
    folder = save_bert(tmp_path / "model", labels=labels)

    with pytest.raises(LabelMismatch) as failure:
        load_teacher(folder)

    assert str(failure.value) == want.format(t=f"file://{folder}")


def test_a_teacher_without_a_classifier_head_is_refused(tmp_path: Path):
    folder = save_bert(tmp_path / "model", labels=None)

    with pytest.raises(CheckpointInvalid) as failure:
        load_teacher(folder)

    assert str(failure.value) == (
        f"spec.teacher.model: file://{folder} has no classifier head (BertModel in config.json); "
        "fine-tune it on the task first (spec.teacher.fineTune)"
    )


def test_a_student_with_another_number_of_classes_is_refused(tmp_path: Path):
    folder = save_bert(tmp_path / "three", labels=["bad", "so-so", "good"])

    with pytest.raises(LabelMismatch) as failure:
        load_student(folder)

    assert str(failure.value) == (
        f"spec.stages[0].student.model: the head of file://{folder} has 3 classes (bad, so-so, good), spec.task.labels has "
        "2 (negative, positive); correct spec.task.labels, or use a checkpoint of this task, or one without a classifier "
        "head"
    )


@pytest.mark.parametrize(
    "config, want",
    [
        pytest.param({"hiden_size": 8}, "spec.stages[0].student.architecture.config.hiden_size: bert has no such field; did you mean hidden_size?", id="misspelt field"),
        pytest.param({"hidden_size": 10, "num_attention_heads": 3}, "spec.stages[0].student.architecture: bert with this config cannot be built: The hidden size (10) is not a multiple of the number of attention heads (3)", id="heads that do not divide"),
        pytest.param({"max_position_embeddings": 8}, "spec.task.maxLength: got 16, but bert reads at most 8 tokens; lower it", id="too few positions"),
        pytest.param({"vocab_size": 7}, "spec.stages[0].student: the tokenizer has 38 words, the model bert has embeddings for 7; use the tokenizer it was trained with", id="too few words"),
        pytest.param({"hidden_size": "eight"}, None, id="text where a number belongs"),
        pytest.param({"hidden_act": "glue"}, None, id="an unknown function"),
        pytest.param({"hidden_size": 0}, None, id="no width"),
    ],
)  # fmt: skip
def test_a_bad_architecture_is_refused(folder: Path, config: dict[str, Any], want: str | None):
    with pytest.raises(CheckpointInvalid) as failure:
        build_student("bert", folder, **{**SMALL_BERT, **config})

    if want:
        assert str(failure.value) == want
    else:
        assert str(failure.value).startswith("spec.stages[0].student.architecture")


@pytest.mark.parametrize("load", [load_teacher, load_student])
def test_a_model_whose_first_answers_are_not_numbers_is_refused(folder: Path, load: Callable[[Path], Any]):
    """Each weight is finite."""
    edit_weights(lambda weights: weights.update({n: w * 1e30 for n, w in weights.items() if "dense.weight" in n}))(
        folder
    )

    with pytest.raises(CheckpointInvalid) as failure:
        load(folder)

    assert str(failure.value).endswith(
        f"model: file://{folder}: the model returns values that are not numbers (NaN or infinite); check that config.json, weights "
        "and tokenizer belong together"
    )
