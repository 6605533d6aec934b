"""Checkpoints of taggers as users have them: matched by name, put in order, proved, or refused; and their tokenizers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distillchain_api.resource.student import Architecture
from distillchain_trainer.data.split import Split, key_of
from distillchain_trainer.engine.passes.shared_forward import all_outputs
from distillchain_trainer.errors import CheckpointInvalid, GateNotMet, LabelMismatch
from distillchain_trainer.models.loaded import Loaded
from distillchain_trainer.models.memory import Processes
from distillchain_trainer.stage_warnings import StageWarnings
from distillchain_trainer.tasks.token_classification.adapter import TokenClassificationAdapter
from distillchain_trainer.tasks.token_classification.head import tagging_head
from distillchain_trainer.tasks.token_classification.words import WordTokenizer
from trainer.checkpoint_parts import edit_json, fetch
from trainer.tagging_parts import LABELS, TAGGER, a_task, save_tagger, save_word_pieces

pytestmark = pytest.mark.models

SENTENCE = ("Anna", "Berg", "saw", "Northwind", "Rail", "in", "Lisbon", ".")
SIZES: dict[str, dict[str, Any]] = {
    "roberta": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64},
    "gpt2": {"n_embd": 32, "n_layer": 1, "n_head": 2},
    "modernbert": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64},
    "distilbert": {"dim": 32, "n_layers": 1, "n_heads": 2, "hidden_dim": 64},
    "bert_hash": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64},
    "xlnet": {"d_model": 32, "n_layer": 1, "n_head": 2, "d_inner": 32},
}


def an_adapter(**task: Any) -> TokenClassificationAdapter:
    return TokenClassificationAdapter(a_task(**task), StageWarnings())


def load_teacher(folder: Path, adapter: TokenClassificationAdapter | None = None) -> Loaded:
    return (adapter or an_adapter()).load_teacher(fetch(folder))


def load_student(folder: Path, adapter: TokenClassificationAdapter | None = None) -> Loaded:
    start = fetch(folder, field="spec.stages[0].student.model")
    return (adapter or an_adapter()).load_student(start, tokenizer=None, seed=1)


def a_split(*rows: tuple[str, ...], tags: list[list[int]] | None = None, name: str = "validation") -> Split:
    return Split(name, list(rows), tags or [[0] * len(row) for row in rows], [key_of(row) for row in rows])


def outputs(loaded: Loaded, split: Split, adapter: TokenClassificationAdapter | None = None) -> np.ndarray[Any, Any]:
    """Logits [words, labels] in the order of the task."""
    adapter = adapter or an_adapter()
    encoded = adapter.encode(split, loaded, check=lambda: None)
    found, _ = all_outputs(loaded.model, encoded, adapter.outputs_of, precision="float32", on_batch=lambda *_: None)
    return loaded.in_task_order(found)


def test_a_teacher_in_another_order_answers_in_the_order_of_the_task(tmp_path: Path):
    other = [LABELS[index] for index in (3, 0, 6, 1, 2, 5, 4)]
    right, turned = save_tagger(tmp_path / "right"), save_tagger(tmp_path / "turned", labels=other)
    state = torch.nn.Module.state_dict(load_teacher(right).model)
    model = load_teacher(turned).model
    model.load_state_dict(state)
    with torch.no_grad():
        order = [LABELS.index(name) for name in other]
        model.classifier.weight.copy_(state["classifier.weight"][order])
        model.classifier.bias.copy_(state["classifier.bias"][order])
    model.save_pretrained(turned)

    wanted = outputs(load_teacher(right), a_split(SENTENCE))

    np.testing.assert_allclose(outputs(load_teacher(turned), a_split(SENTENCE)), wanted, atol=1e-6)
    student = load_student(turned)
    assert student.columns is None
    assert list(student.model.config.id2label.values()) == LABELS
    np.testing.assert_allclose(outputs(student, a_split(SENTENCE)), wanted, atol=1e-6)


def test_a_teacher_without_a_head_is_refused_and_a_student_gets_a_new_one(tmp_path: Path):
    folder = save_tagger(tmp_path / "model", labels=None)
    adapter = an_adapter()

    with pytest.raises(CheckpointInvalid) as error:
        load_teacher(folder, adapter)
    student = load_student(folder, adapter)

    assert str(error.value) == (
        f"spec.teacher.model: file://{folder} has no head that tags words (BertModel in config.json); fine-tune it on "
        "the task first (spec.teacher.fineTune)"
    )
    assert type(student.model).__name__ == "BertForTokenClassification"
    assert any("these weights start new: classifier.bias, classifier.weight" in w for w in adapter.notes.sentences)


def test_a_classifier_of_texts_is_no_tagger(tmp_path: Path):
    from transformers import BertConfig, BertForSequenceClassification

    tokenizer = save_word_pieces(tmp_path)
    BertForSequenceClassification(BertConfig(vocab_size=len(tokenizer), **TAGGER)).save_pretrained(tmp_path)

    with pytest.raises(CheckpointInvalid, match="no head that tags words"):
        load_teacher(tmp_path)
    assert load_student(tmp_path).model.config.num_labels == len(LABELS)


BAD_CHECKPOINTS = [
    pytest.param(["O", "B-DISEASE"], {}, LabelMismatch, " has 2 classes (O, B-DISEASE), spec.task.labels has 7", id="other number"),
    pytest.param([*LABELS[:5], "B-MISC", "I-MISC"], {}, LabelMismatch, " are O, B-PER, I-PER, B-LOC, I-LOC, B-MISC, ..., spec.task.labels are", id="other names"),
    pytest.param(LABELS, {"num_labels": 9}, CheckpointInvalid, "num_labels is 9, but id2label has 7 classes; correct one", id="contradiction"),
]  # fmt: skip


@pytest.mark.parametrize("labels, config, kind, message", BAD_CHECKPOINTS)
def test_a_head_with_other_tags_is_refused(
    tmp_path: Path, labels: list[str], config: dict[str, Any], kind: Any, message: str
):
    folder = save_tagger(tmp_path / "model", labels=labels)
    edit_json("config.json", **config)(folder)

    for load in (load_teacher, load_student):
        with pytest.raises(kind) as error:
            load(folder)
        assert message in str(error.value)


def unnamed(folder: Path, order: list[int]) -> Path:
    """A perfect tagger of the words w0, w1, ... whose outputs have no names, in an order of its own."""
    save_tagger(folder, labels=[f"LABEL_{index}" for index in range(len(LABELS))])
    return folder


def test_tags_without_names_must_be_in_the_order_of_the_task(tmp_path: Path):
    """What a model answers is made up here: the order is judged by the answers alone."""
    adapter = an_adapter()
    teacher = load_teacher(unnamed(tmp_path / "model", []), adapter)
    assert adapter.start_is_unproven(teacher)
    dice = np.random.default_rng(0)
    tags = [dice.choice(7, size=20, p=[0.7, *[0.05] * 6]).tolist() for _ in range(40)]
    split = a_split(*[("w",) * 20] * 40, tags=tags)
    truth = np.concatenate([np.array(row) for row in tags])
    exchanged = np.array([0, 3, 4, 1, 2, 5, 6])  # people for places

    right = adapter.measure(split, np.eye(7, dtype=np.float32)[truth])
    wrong = adapter.measure(split, np.eye(7, dtype=np.float32)[exchanged[truth]])
    poor = adapter.measure(split, np.eye(7, dtype=np.float32)[dice.permutation(truth)])

    adapter.check_teacher(teacher, right, uri="hf://org/teacher", remedy="fine-tune it")
    with pytest.raises(LabelMismatch) as error:
        adapter.check_teacher(teacher, wrong, uri="hf://org/teacher", remedy="fine-tune it")
    assert str(error.value) == (
        "teacher hf://org/teacher: LABEL_0, LABEL_1, ... fit validation better as O, B-LOC, I-LOC, B-PER, I-PER, B-ORG, "
        "... than as O, B-PER, I-PER, B-LOC, I-LOC, B-ORG, ...: its tags are probably in that order; write their names "
        "into id2label of its config.json"
    )
    with pytest.raises(GateNotMet, match="could be luck"):
        adapter.check_teacher(teacher, poor, uri="hf://org/teacher", remedy="fine-tune it")
    for measured, keeps_head in ((right, True), (wrong, False), (poor, False)):
        student = load_student(tmp_path / "model", adapter)
        before = student.model.classifier.weight.detach().clone()
        adapter.settle_start(student, measured, seed=3)
        assert torch.equal(student.model.classifier.weight, before) == keeps_head
    assert any("its tags have no names (LABEL_0, ...)" in sentence for sentence in adapter.notes.sentences)


def test_a_tagger_that_finds_nothing_or_only_guesses_is_doubtful():
    adapter = an_adapter()
    split = a_split(SENTENCE, tags=[[1, 2, 0, 5, 6, 0, 3, 0]])
    nothing = np.tile(np.eye(7, dtype=np.float32)[0], (8, 1))

    measured = adapter.measure(split, nothing)

    assert measured.metrics == {"entityF1": 0.0, "tokenAccuracy": pytest.approx(3 / 8)}
    assert measured.doubt == "it tags every word of 1 validation sentences as O, so its entity F1 is 0"
    assert measured.warnings == ["it never predicts 3 of 3 kinds of entities of validation: LOC, ORG, PER"]


def test_words_that_are_not_read_count_as_o_and_are_reported():
    adapter = an_adapter(maxLength=6)
    split = a_split(("Berg",) * 3 + ("Lisbon",) * 9, ("\u200b", "a"), tags=[[1] * 12, [3, 0]])
    logits = np.tile(np.eye(7, dtype=np.float32)[1], (14, 1))
    logits[5:13] = 0  # as the engine leaves the outputs of words without a token

    measured = adapter.measure(split, logits)

    assert measured.answers.predicted.tolist() == [1] * 5 + [0] * 8 + [1]


def test_lost_words_are_counted_by_reason(tmp_path: Path):
    adapter = an_adapter(maxLength=6)
    loaded = load_teacher(save_tagger(tmp_path / "model"), adapter)
    split = a_split(("a",) * 12, ("\u200b", "a"), ("\x00", "\u200b"), ("a", "b"), ("a", "\u200b", *("b",) * 3))

    encoded = adapter.encode(split, loaded, check=lambda: None)

    assert encoded.positions is not None
    assert encoded.positions.tolist() == [1, 2, 3, 4, *[-1] * 8, -1, 1, -1, -1, 1, 2, 1, -1, 2, 3, 4]
    size = len(loaded.tokenizer)
    assert adapter.notes.sentences[-2:] == [
        f"spec.task.maxLength: 8 of 23 words of validation are beyond 6 tokens (tokenizer with {size} tokens); they count "
        "as O, and no student learns from them",
        "4 of 23 words of validation have no token, such as word 1 at validation, row 2: the tokenizer drops all of "
        f"their characters (tokenizer with {size} tokens); they count as O, and no student learns from them",
    ]
    found = outputs(loaded, split, adapter)
    assert [bool(row.any()) for row in found] == [position >= 0 for position in encoded.positions.tolist()]


@pytest.mark.parametrize("side", ["right", "left"])
def test_the_word_at_the_cut_keeps_its_output_only_with_its_first_token(tmp_path: Path, side: str):
    tokenizer = save_word_pieces(tmp_path)
    tokenizer.truncation_side = side
    words = ("xyzxyz", "a", "xyzxyz", "a", "xyzxyz")
    assert len(tokenizer.tokenize("xyzxyz")) > 3

    tokens = WordTokenizer(tokenizer, 10, with_kinds=True).tokenize([words])

    assert tokens.positions is not None
    (ids,), (positions,) = tokens.ids, tokens.positions
    reference = tokenizer(list(words), is_split_into_words=True, truncation=True, max_length=10)
    assert ids.tolist() == reference["input_ids"]
    for word, position in enumerate(positions):
        if position >= 0:
            first = tokenizer.convert_ids_to_tokens(int(ids[position]))
            assert words[word].startswith(first)
            assert reference.word_ids()[position] == word
    assert (positions >= 0).sum() == (2 if side == "left" else 3)
    assert tokens.full_lengths == [len(tokenizer(list(words), is_split_into_words=True)["input_ids"])]


def test_a_control_token_among_the_words_is_text(tmp_path: Path):
    tokenizer = save_word_pieces(tmp_path)
    rows = [("a", "[SEP]", "b", "x[CLS]y"), ("[UNK]", "b"), ("a", "b")]

    tokens = WordTokenizer(tokenizer, 32, with_kinds=True).tokenize(rows)

    controls = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    for ids in tokens.ids:
        assert [index for index, token in enumerate(ids.tolist()) if token in controls] == [0, len(ids) - 1]
    assert tokens.positions is not None
    assert all((positions > 0).all() for positions in tokens.positions)
    assert tokens.ids[2].tolist() == tokenizer(["a", "b"], is_split_into_words=True)["input_ids"]


def byte_level(folder: Path, kind: str) -> Path:
    """An encoder whose byte-level tokenizer puts no space before words, as RoBERTa's and GPT-2's are published."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
    backend.train_from_iterator(["Anna Berg saw Northwind Rail in Lisbon"] * 9, trainer)
    if kind == "roberta":
        backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>",
        cls_token="<s>", sep_token="</s>",
    )  # fmt: skip
    tokenizer.save_pretrained(folder)
    classes = {"roberta": "RobertaTokenizer", "gpt2": "GPT2Tokenizer"}
    edit_json("tokenizer_config.json", tokenizer_class=classes.get(kind, "PreTrainedTokenizerFast"))(folder)
    sizes = {"vocab_size": len(tokenizer), "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, **SIZES[kind]}
    if kind == "modernbert":
        sizes |= {"cls_token_id": 0, "sep_token_id": 2}
    AutoModel.from_config(AutoConfig.for_model(kind, **sizes)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["roberta", "gpt2", "modernbert"])
def test_words_of_a_new_tagger_begin_with_a_space_also_after_it_was_saved(tmp_path: Path, kind: str):
    from transformers import AutoTokenizer

    student = load_student(byte_level(tmp_path / "start", kind))
    student.model.save_pretrained(tmp_path / "saved")
    student.tokenizer.save_pretrained(tmp_path / "saved")
    again = AutoTokenizer.from_pretrained(tmp_path / "saved")

    ids = again(list(SENTENCE), is_split_into_words=True)["input_ids"]
    assert WordTokenizer(student.tokenizer, 64, with_kinds=False).tokenize([SENTENCE]).ids[0].tolist() == ids
    assert "ĠLisbon" in again.convert_ids_to_tokens(ids)
    # A finished tagger was trained with its tokenizer as it is.
    edit_json("tokenizer_config.json", add_prefix_space=False)(tmp_path / "saved")
    assert json.loads((tmp_path / "saved/tokenizer_config.json").read_text())["add_prefix_space"] is False
    loaded = load_teacher(tmp_path / "saved")
    own = AutoTokenizer.from_pretrained(tmp_path / "saved")(list(SENTENCE), is_split_into_words=True)["input_ids"]
    assert WordTokenizer(loaded.tokenizer, 64, with_kinds=False).tokenize([SENTENCE]).ids[0].tolist() == own


def test_a_tokenizer_in_python_is_refused():
    from transformers import CanineTokenizer

    head, what = tagging_head(a_task()), "spec.teacher.model: the tokenizer of hf://org/model"

    with pytest.raises(CheckpointInvalid) as error:
        head.prepare_tokenizer(CanineTokenizer(), what=what, is_new=True, warnings=StageWarnings())

    assert str(error.value) == (
        "spec.teacher.model: the tokenizer of hf://org/model is a CanineTokenizer, which is written in Python and does "
        "not say which token belongs to which word; save it as a fast tokenizer of transformers, which has a "
        "tokenizer.json"
    )


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", ["bert", "distilbert", "bert_hash", "gpt2", "roberta", "xlnet"])
def test_a_word_gets_the_same_tag_alone_and_in_any_batch(tmp_path: Path, kind: str, side: str):
    if kind in ("gpt2", "roberta"):
        folder = byte_level(tmp_path / "model", kind)
    else:
        folder = save_tagger(tmp_path / "model", kind, labels=None, **SIZES.get(kind, {}))
    edit_json("tokenizer_config.json", padding_side=side)(folder)
    loaded = load_student(folder)
    rows = [SENTENCE, ("Anna",), ("in", "Lisbon"), SENTENCE[2:] * 2]

    together = outputs(loaded, a_split(*rows))

    alone = np.concatenate([outputs(loaded, a_split(row)) for row in rows])
    np.testing.assert_allclose(together, alone, atol=1e-4)


def test_a_model_type_that_cannot_tag_is_refused(tmp_path: Path):
    save_word_pieces(tmp_path)
    architecture = Architecture(model_type="bart", config={"d_model": 16})

    with pytest.raises(CheckpointInvalid) as error:
        an_adapter().build_student(
            architecture, fetch(tmp_path, field="spec.stages[0].student.tokenizer", parts="tokenizer"), seed=1,
            field="spec.stages[0].student", processes=Processes(),
        )  # fmt: skip

    assert str(error.value) == (
        "spec.stages[0].student.architecture.modelType: got bart, which cannot tag words; use one that can, such as bert, "
        "roberta, distilbert, electra, deberta-v2, modernbert, gpt2, llama, qwen2 or bert-hash"
    )


def test_the_label_loss_is_the_cross_entropy_of_each_word():
    adapter = an_adapter()
    logits = torch.tensor([[[0.0] * 7, [2.0, *[0.0] * 6]]])

    loss = adapter.label_loss(logits, torch.tensor([[3, 0]]))

    e2 = float(np.exp(2.0))
    assert loss.tolist() == [[pytest.approx(np.log(7)), pytest.approx(-np.log(e2 / (e2 + 6)), rel=1e-5)]]
