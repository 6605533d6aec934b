"""Chains of small language models, from bad checkpoints to committed ones that plain transformers loads."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from distillchain_api.graph import build_plan
from distillchain_api.resource.spec import parse_chain
from distillchain_api.wire.answer import Committed
from distillchain_api.wire.manifest import Manifest
from distillchain_trainer.errors import CheckpointInvalid, DataInvalid
from distillchain_trainer.models.checkpoints import Checkpoint, fetch_checkpoint
from distillchain_trainer.objectives import load_objective
from distillchain_trainer.stage_warnings import StageWarnings
from smollm2.texts import as_chat, as_completion, as_text
from trainer.checkpoint_parts import edit_weights
from trainer.language_parts import (
    HELD_OUT,
    SMALL_LLAMA,
    a_chain_document,
    a_task,
    a_task_document,
    an_adapter,
    in_order,
    save_llama,
    write_sentences,
)
from trainer.parts import manifest_of, read_json, run_here, save_bert

pytestmark = pytest.mark.models

ROWS = {"text": as_text, "completion": as_completion, "messages": as_chat}
TRAINING = {"epochs": 3, "batchSize": 8, "learningRate": 0.02}


def checkpoint(folder: Path, field: str = "spec.teacher.model") -> Checkpoint:
    return fetch_checkpoint(f"file://{folder}", field=field, endpoint_url=None, region=None, folder=folder)


def run_chain(root: Path, form: str = "text", *, stage: dict[str, Any] | None = None, **task: Any) -> list[Committed]:
    """Fine-tunes root/start as the teacher, then trains a student. Returns: both commits."""
    write_sentences(root / "data", ROWS[form])
    new = {"architecture": {"modelType": "llama", "config": {**SMALL_LLAMA, "num_hidden_layers": 1}}}
    document = a_chain_document(
        root,
        task=a_task_document(root / "data", form, **task),
        teacher={"model": f"file://{root}/start", "fineTune": {}},
        template={"training": TRAINING},
        stages=[{"name": "small", "student": {**new, "tokenizer": f"file://{root}/start"}, **(stage or {})}],
    )
    plan = build_plan(parse_chain(document))
    return [run_here(stage.work_order, root, attempt=stage.name) for stage in plan.stages]


def nats_in_plain_transformers(folder: str, rows: list[str]) -> float:
    """Mean cross-entropy over all tokens but the first, row by row, with transformers alone."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = folder.removeprefix("file://")
    tokenizer, model = AutoTokenizer.from_pretrained(path), AutoModelForCausalLM.from_pretrained(path).eval()
    total, tokens = 0.0, 0
    for row in rows:
        ids = torch.tensor([[*tokenizer(row)["input_ids"], tokenizer.eos_token_id]])
        with torch.no_grad():
            total += float(model(input_ids=ids, labels=ids).loss) * (ids.shape[1] - 1)
        tokens += ids.shape[1] - 1
    return total / tokens


def predictions(answer: Committed, name: str) -> list[dict[str, Any]]:
    folder = Path(answer.checkpoint.removeprefix("file://")).parent / "results"
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def test_a_chain_on_plain_texts_whose_numbers_a_stranger_can_compute_again(tmp_path: Path):
    save_llama(tmp_path / "start")

    teacher, student = run_chain(tmp_path)

    manifest = manifest_of(tmp_path, student.digest)
    measured = manifest.student.metrics.validation
    assert manifest.teacher is not None
    assert manifest.student.doubt is None
    # With transformers alone, from the files of the checkpoint.
    assert measured["tokenCrossEntropy"] == pytest.approx(
        nats_in_plain_transformers(student.checkpoint, HELD_OUT), rel=1e-5
    )
    assert manifest.teacher.metrics.validation["tokenCrossEntropy"] == pytest.approx(
        nats_in_plain_transformers(teacher.checkpoint, HELD_OUT), rel=1e-5
    )
    # From the predictions, without any model.
    ours, theirs = (predictions(student, f"{who}predictions-validation.jsonl") for who in ("", "teacher-"))
    tokens = sum(row["tokens"] for row in ours)
    assert -sum(row["logProbability"] for row in ours) / tokens == pytest.approx(measured["tokenCrossEntropy"], 1e-5)
    assert measured["perplexity"] == pytest.approx(math.exp(measured["tokenCrossEntropy"]))
    assert sum(row["agreed"] for row in ours) / tokens == pytest.approx(measured["teacherAgreement"])
    assert [row["tokens"] for row in theirs] == [row["tokens"] for row in ours]
    assert "agreed" not in theirs[0]
    # The root teacher is measured alone, so it agrees with none.
    assert "teacherAgreement" not in manifest.teacher.metrics.validation


@pytest.mark.parametrize("form", ["completion", "messages"])
def test_a_chain_on_completions_or_chats(tmp_path: Path, form: str):
    save_llama(tmp_path / "start", padding_rows=5)

    _, student = run_chain(tmp_path, form, stage={"distillation": {"alpha": 0.5, "temperature": 2}})

    # Three words of each sentence are its prompt; the others and the end are predicted.
    counts = [row["tokens"] for row in predictions(student, "predictions-validation.jsonl")]
    assert counts == [len(sentence.split()) - 2 for sentence in HELD_OUT]
    template = Path(student.checkpoint.removeprefix("file://")) / "chat_template.jinja"
    assert "assistant" in template.read_text()


def test_the_report_has_the_texts_of_the_rows_that_a_second_student_has_lost_since_the_root(tmp_path: Path):
    """Rows are chosen by the root teacher, as in the report, and not by the first student."""
    save_llama(tmp_path / "start")
    write_sentences(tmp_path / "data", as_text)
    (tmp_path / "data/dev.jsonl").write_text("".join(json.dumps(as_text(text)) + "\n" for text in in_order(80, 3)))
    layers = [{"name": name, "student": {"fromTeacher": {"layers": 1}}} for name in ("first", "second")]
    document = a_chain_document(
        tmp_path,
        task=a_task_document(tmp_path / "data"),
        teacher={"model": f"file://{tmp_path}/start", "fineTune": {}},
        template={"training": {**TRAINING, "epochs": 1}},
        stages=layers,
    )
    orders = [stage.work_order for stage in build_plan(parse_chain(document)).stages]

    root, _, second = [run_here(order, tmp_path, attempt=order.stage) for order in orders]

    theirs, ours = (
        [row["logProbability"] for row in predictions(it, "predictions-validation.jsonl")] for it in (root, second)
    )
    lost = np.array(theirs) - np.array(ours)
    want = sorted(int(row) for row in np.argsort(-lost, kind="stable")[:20])
    assert [row["row"] for row in predictions(second, "examples-validation.jsonl")] == want


def test_the_student_learns_from_the_teacher_alone_as_from_its_labels(tmp_path: Path):
    """alpha 1: the loss is the teacher's alone, and the student still gets better than the frequencies."""
    save_llama(tmp_path / "start")

    _, student = run_chain(tmp_path, stage={"student": {"fromTeacher": {"layers": 1}}}, topK=8)

    manifest: Manifest = manifest_of(tmp_path, student.digest)
    assert manifest.student.doubt is None
    assert manifest.student.metrics.validation["teacherAgreement"] > 0.5


def test_the_teacher_s_outputs_are_stored_with_topk_columns_and_reused_only_with_the_same_topk(tmp_path: Path):
    from distillchain_api.resource.training import Training
    from distillchain_trainer.engine.passes.teacher_outputs import outputs_digest

    small, large = (a_task(tmp_path, topK=k) for k in (8, 9))

    assert outputs_digest("teacher", small, Training()) != outputs_digest("teacher", large, Training())


MORE = ("<think>", "</think>")


@pytest.mark.parametrize(
    "of_teacher, of_student, padding_rows, why",
    [
        pytest.param(
            ("other", *MORE),
            ("extra", *MORE),
            0,
            "id 39 is 'extra', the teacher's 'other'; use a model of the teacher's family; between other vocabularies, "
            "TRL's GOLD trainer uses the loss ULD",
            id="another token",
        ),
        pytest.param(
            MORE,
            (),
            1,
            "the teacher has <think>, </think>, which it lacks; add them to its tokenizer with add_tokens(), in this "
            "order, call resize_token_embeddings() of the model, and save both",
            id="tokens without embeddings",
        ),
    ],
)
def test_a_student_of_another_vocabulary_is_refused_with_the_remedy(
    tmp_path: Path, of_teacher: tuple[str, ...], of_student: tuple[str, ...], padding_rows: int, why: str
):
    save_llama(tmp_path / "teacher", more_words=of_teacher)
    save_llama(tmp_path / "student", more_words=of_student, padding_rows=padding_rows)
    adapter = an_adapter(a_task(tmp_path))
    teacher = adapter.load_teacher(checkpoint(tmp_path / "teacher"))

    with pytest.raises(CheckpointInvalid) as caught:
        adapter.load_student(checkpoint(tmp_path / "student", "spec.stages[0].student.model"), tokenizer=None, seed=0)

    assert str(caught.value) == (
        f"spec.stages[0].student.model: file://{tmp_path}/student: its vocabulary differs from the vocabulary of the "
        f"teacher {teacher.start}: {why}"
    )


@pytest.mark.parametrize(
    "of_teacher, of_student, padding_rows, warned", [(MORE, (), 2, True), ((), MORE, 0, False)], ids=["lacks", "has"]
)
def test_a_student_may_lack_tokens_for_which_it_has_embeddings_and_have_tokens_that_its_teacher_lacks(
    tmp_path: Path, of_teacher: tuple[str, ...], of_student: tuple[str, ...], padding_rows: int, warned: bool
):
    warnings = StageWarnings()
    save_llama(tmp_path / "teacher", more_words=of_teacher)
    save_llama(tmp_path / "student", more_words=of_student, padding_rows=padding_rows)
    adapter = an_adapter(a_task(tmp_path), warnings)
    teacher = adapter.load_teacher(checkpoint(tmp_path / "teacher"))

    student = adapter.load_student(checkpoint(tmp_path / "student"), tokenizer=None, seed=0)

    assert student.tokenizer is teacher.tokenizer
    assert [it for it in warnings.sentences if "tokenizer" in it] == warned * [
        f"spec.teacher.model: file://{tmp_path}/student: the tokenizer of the teacher has <think>, </think>, which it lacks; their "
        "embeddings may not have been trained"
    ]


def test_a_student_takes_over_the_teacher_s_tokenizer_and_template(tmp_path: Path):
    task, warnings = a_task(tmp_path), StageWarnings()
    save_llama(tmp_path / "teacher")
    save_llama(tmp_path / "student", template="{{ messages }}", padding_rows=7)
    adapter = an_adapter(task, warnings)
    teacher = adapter.load_teacher(checkpoint(tmp_path / "teacher"))

    student = adapter.load_student(checkpoint(tmp_path / "student"), tokenizer=None, seed=0)

    assert student.tokenizer is teacher.tokenizer
    assert any("chat template differs from the teacher's" in sentence for sentence in warnings.sentences)


@pytest.mark.parametrize("own_head", [False, True])
def test_config_json_says_whether_the_head_has_weights_of_its_own(tmp_path: Path, own_head: bool):
    folder = save_llama(tmp_path)
    if own_head:
        edit_weights(lambda weights: weights.update({"lm_head.weight": 2 * weights["model.embed_tokens.weight"]}))(
            folder
        )

    student = an_adapter(a_task(tmp_path)).load_student(checkpoint(folder), tokenizer=None, seed=0)

    assert student.model.config.tie_word_embeddings is not own_head


@pytest.mark.parametrize("form, end", [("messages", "<|im_end|>"), ("completion", "<|im_start|>")])
def test_a_base_model_learns_from_a_chat_model_and_stops_where_the_rows_end(tmp_path: Path, form: str, end: str):
    save_llama(tmp_path / "teacher")
    # As in the base models of Qwen 2.5, the tokenizer names another end than config.json, which has 2.
    config = tmp_path / "teacher/tokenizer_config.json"
    config.write_text(json.dumps({**read_json(config), "eos_token": "<|im_start|>"}))
    save_llama(tmp_path / "student", template=None)
    adapter = an_adapter(a_task(tmp_path, form))
    teacher = adapter.load_teacher(checkpoint(tmp_path / "teacher"))

    student = adapter.load_student(checkpoint(tmp_path / "student"), tokenizer=None, seed=0)

    assert student.model.generation_config.eos_token_id == [2, teacher.tokenizer.convert_tokens_to_ids(end)]


def test_padding_rows_of_a_student_do_not_count_where_every_token_is_compared(tmp_path: Path):
    """The teacher has none and gives them probability 0: ReverseKL was infinite, but for the finite stand-in of -inf."""
    save_llama(tmp_path / "teacher")
    save_llama(tmp_path / "student", padding_rows=5)
    adapter = an_adapter(a_task(tmp_path, topK=1024))
    words = len(adapter.load_teacher(checkpoint(tmp_path / "teacher")).tokenizer)
    adapter.load_student(checkpoint(tmp_path / "student"), tokenizer=None, seed=0)
    torch.manual_seed(1)
    theirs, ours = torch.randn(2, 3, words), torch.randn(2, 3, words + 5, requires_grad=True)
    items = {"positions": torch.arange(3).expand(2, -1), "item_ids": torch.zeros(2, 3, dtype=torch.long)}
    stored = adapter.outputs_of(SimpleNamespace(logits=theirs), items)

    student, teacher = adapter.teacher_pair(ours, stored)
    losses = load_objective("ReverseKL").losses(student, teacher, temperature=1.0, parameters={})

    log_q, log_p = ours[..., :words].log_softmax(-1), theirs.log_softmax(-1)
    torch.testing.assert_close(losses, (log_q.exp() * (log_q - log_p)).sum(-1))
    losses.sum().backward()
    assert ours.grad is not None
    assert not ours.grad[..., words:].any()


def test_a_model_that_reads_later_tokens_is_refused(tmp_path: Path):
    from transformers import BertConfig, BertLMHeadModel

    save_bert(tmp_path / "bert", labels=None)
    settings = BertConfig.from_pretrained(tmp_path / "bert")
    settings.eos_token_id = 3
    BertLMHeadModel(settings).save_pretrained(tmp_path / "bert")
    tokenizer = json.loads((tmp_path / "bert/tokenizer_config.json").read_text())
    (tmp_path / "bert/tokenizer_config.json").write_text(json.dumps({**tokenizer, "eos_token": "[SEP]"}))

    with pytest.raises(CheckpointInvalid, match="the model reads tokens after the one that it predicts from"):
        an_adapter(a_task(tmp_path)).load_teacher(checkpoint(tmp_path / "bert"))


def test_a_model_of_a_type_without_language_model_is_refused(tmp_path: Path):
    save_bert(tmp_path / "vit", labels=None)
    settings = json.loads((tmp_path / "vit/config.json").read_text())
    (tmp_path / "vit/config.json").write_text(json.dumps({**settings, "model_type": "distilbert"}))

    with pytest.raises(
        CheckpointInvalid, match="is a distilbert, which does not predict the next token; use a model type that does"
    ):
        an_adapter(a_task(tmp_path)).load_teacher(checkpoint(tmp_path / "vit"))


def test_a_tokenizer_without_end_token_is_refused_for_texts(tmp_path: Path):
    save_llama(tmp_path / "teacher")
    tokenizer = json.loads((tmp_path / "teacher/tokenizer_config.json").read_text())
    del tokenizer["eos_token"]
    (tmp_path / "teacher/tokenizer_config.json").write_text(json.dumps({**tokenizer, "pad_token": "<unk>"}))

    with pytest.raises(CheckpointInvalid, match="has no end token to end each text with; set eos_token"):
        an_adapter(a_task(tmp_path)).load_teacher(checkpoint(tmp_path / "teacher"))


def test_rows_with_nothing_to_predict_are_counted_and_refused_if_nothing_is_left(tmp_path: Path):
    write_sentences(tmp_path, as_completion)
    task, warnings = a_task(tmp_path, "completion", maxLength=4), StageWarnings()
    adapter = an_adapter(task, warnings)
    save_llama(tmp_path / "teacher")
    teacher = adapter.load_teacher(checkpoint(tmp_path / "teacher"))
    data = adapter.read_data(endpoint_url=None, region=None, folder=tmp_path / "scratch")

    with pytest.raises(DataInvalid) as caught:
        adapter.encode(data.validation, teacher, check=lambda: None)

    assert str(caught.value) == (
        "spec.task.maxLength: got 4, which leaves nothing to predict in all 24 validation rows; raise it, or shorten the "
        "prompts"
    )


def test_the_chance_level_is_that_of_the_other_tokens(tmp_path: Path):
    from distillchain_trainer.tasks.causal_lm.chance import doubt_of, unigram_log_probabilities

    targets = np.array([5, 5, 7])

    # Of the two other tokens one is 5: (1 + 1) / (2 + 10); 7 is not among the others: (0 + 1) / (2 + 10).
    np.testing.assert_allclose(np.exp(unigram_log_probabilities(targets, 10)), [2 / 12, 2 / 12, 1 / 12])
    assert doubt_of(np.log([0.9, 0.8, 0.9]), targets, 10) is None
    doubt = doubt_of(np.log([0.1, 0.1, 0.1]), targets, 10)
    assert doubt is not None
    assert doubt.startswith(
        "tokenCrossEntropy 2.303 on 3 validation tokens does not beat the frequencies of the tokens"
    )
