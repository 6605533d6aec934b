"""The hidden-state term with real models: what it reads of them, how it is trained, saved and resumed."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification

from distillchain_api.resource.hidden import HiddenMSE, HiddenTerm, LayerPair, ValueRelation
from distillchain_api.resource.training import Training
from distillchain_trainer.engine.encoding.encoded import Encoded
from distillchain_trainer.engine.training.optimizer import build_optimizer
from distillchain_trainer.engine.training.step import Work
from distillchain_trainer.engine.training.training_rows import TrainingRows
from distillchain_trainer.errors import CheckpointInvalid
from distillchain_trainer.hidden_states.hidden_mse import hidden_mse
from distillchain_trainer.hidden_states.inside_models import Recorder
from distillchain_trainer.hidden_states.term import PROJECTION, HiddenStates, Models, build_hidden_term
from distillchain_trainer.hidden_states.value_relation import relation_loss
from distillchain_trainer.models.bert_hash import register
from trainer.loop_parts import recipe, train, train_until_stopped

pytestmark = pytest.mark.models

FIELD = "spec.stages[0].distillation.hidden"
CPU = torch.device("cpu")
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
MODELS: dict[str, dict[str, Any]] = {
    "bert": SIZES,
    "roberta": SIZES,
    "electra": SIZES,
    "bert_hash": SIZES,
    "distilbert": {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32},
    "llama": {**SIZES, "num_key_value_heads": 1},
    "qwen2": {**SIZES, "num_key_value_heads": 1},
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2},
    "albert": {**SIZES, "embedding_size": 8},
}


def a_model(kind: str = "bert", *, seed: int = 0, **config: Any) -> Any:
    register()
    sizes = {**MODELS[kind], **config}
    settings = AutoConfig.for_model(kind, vocab_size=50, max_position_embeddings=32, pad_token_id=0, **sizes)
    torch.manual_seed(seed)
    return AutoModelForSequenceClassification.from_config(settings)


def a_term(spec: HiddenTerm, student: Any, teacher: Any, *, seed: int = 1) -> HiddenStates:
    return build_hidden_term(spec, Models(student, teacher, "the student", "the teacher", FIELD), seed=seed, device=CPU)


def inputs() -> dict[str, Tensor]:
    ids = torch.randint(1, 50, (3, 7), generator=torch.Generator().manual_seed(4))
    mask = (torch.arange(7) < torch.tensor([[7], [4], [2]])).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


def losses_of(term: HiddenStates, student: Any) -> Tensor:
    student(**inputs())
    term.observe(inputs())
    return term.losses(inputs())


@pytest.mark.parametrize("kind", ["bert", "roberta", "electra", "bert_hash", "distilbert", "llama", "qwen2"])
def test_values_of_many_architectures_are_compared(kind: str):
    student, teacher = (
        a_model(kind, seed=1),
        a_model(kind, seed=2, **({} if kind == "distilbert" else {"hidden_size": 32})),
    )
    term = a_term(ValueRelation(objective="ValueRelation", relations=["Query", "Key", "Value"]), student, teacher)

    losses = losses_of(term, student)
    losses.sum().backward()

    assert losses.shape == (3,)
    assert (losses > 0).all()
    assert sum(parameter.grad is not None and bool(parameter.grad.any()) for parameter in student.parameters()) > 3
    assert all(parameter.grad is None for parameter in teacher.parameters())


@pytest.mark.parametrize("kind", ["bert", "bert_hash", "gpt2", "llama"])
def test_hidden_states_of_many_architectures_are_compared(kind: str):
    student, teacher = a_model(kind, seed=1), a_model("bert", seed=2, hidden_size=24, num_hidden_layers=4)
    term = a_term(HiddenMSE(objective="HiddenMSE"), student, teacher)

    losses = losses_of(term, student)
    losses.sum().backward()

    assert (losses > 0).all()
    assert term.get_parameter(PROJECTION).shape == (16, 24)
    assert term.get_parameter(PROJECTION).grad is not None


def test_the_states_are_those_that_transformers_reports():
    student, teacher = a_model(seed=1).eval(), a_model(seed=2, hidden_size=24, num_hidden_layers=4)
    pairs = [LayerPair(student=0, teacher=0), LayerPair(student=1, teacher=3), LayerPair(student=2, teacher=4)]
    term = a_term(HiddenMSE(objective="HiddenMSE", weight=0.5, layers=pairs), student, teacher)

    got = losses_of(term, student)

    own, other = (model(**inputs(), output_hidden_states=True).hidden_states for model in (student, teacher.eval()))
    chosen = [own[pair.student] for pair in pairs], [other[pair.teacher] for pair in pairs]
    want = hidden_mse(*chosen, term.get_parameter(PROJECTION), inside=inputs()["attention_mask"].bool())
    torch.testing.assert_close(got, 0.5 * want)


def test_the_values_are_those_of_the_last_and_of_the_chosen_layer():
    student, teacher = a_model(seed=1).eval(), a_model(seed=2, num_hidden_layers=4)
    spec = ValueRelation(objective="ValueRelation", teacher_layer=3, relation_heads=4)
    term = a_term(spec, student, teacher)

    got = losses_of(term, student)

    def values(model: Any, layer: int) -> Tensor:
        read = model(**inputs(), output_hidden_states=True).hidden_states[layer - 1]
        found: Tensor = model.bert.encoder.layer[layer - 1].attention.self.value(read)
        return found

    inside = inputs()["attention_mask"].bool()
    torch.testing.assert_close(got, relation_loss(values(student, 2), values(teacher, 3), heads=4, inside=inside))


def test_a_student_that_is_measured_is_not_recorded_and_a_closed_term_records_nothing():
    student, teacher = a_model(seed=1), a_model(seed=2)
    term = a_term(HiddenMSE(objective="HiddenMSE"), student, teacher)

    with torch.no_grad():
        student(**inputs())
    term.observe(inputs())

    with pytest.raises(RuntimeError, match=r"^no output was recorded of 1, 2$"):
        term.losses(inputs())
    term.close()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in student.modules())


def test_gradients_stay_the_same_when_activations_are_computed_twice():
    gradients = []
    for twice in (False, True):
        student, teacher = a_model(seed=1, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0), a_model(seed=2)
        if twice:
            student.activation_checkpointing_enable({"use_reentrant": False})
        term = a_term(ValueRelation(objective="ValueRelation"), student.train(), teacher)
        losses_of(term, student).sum().backward()
        gradients.append([parameter.grad for parameter in student.bert.encoder.parameters()])

    for one, other in zip(*gradients, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    "student, teacher, spec, why",
    [
        pytest.param(
            "gpt2", "bert", ValueRelation(objective="ValueRelation"),
            "student the student: a layer of gpt2 has 0 linear layers named value, v_lin, v_proj, expected one; use "
            "hidden.objective HiddenMSE, which needs none, or another architecture", id="fused projections",
        ),
        pytest.param(
            "bert", "albert", HiddenMSE(objective="HiddenMSE"),
            "teacher the teacher: a albert of 2 layers has 1 modules for them, expected one for each; "
            "distillation.hidden cannot tell its layers apart: remove it, or use another architecture", id="shared layers",
        ),
        pytest.param(
            "bert", "bert", HiddenMSE(objective="HiddenMSE", layers=[LayerPair(student=1, teacher=3)]),
            f"{FIELD}.layers[0].teacher: got 3, but the teacher has 2 layers; expected a number from 0, the embeddings, "
            "to that", id="a layer too many",
        ),
        pytest.param(
            "bert", "bert", ValueRelation(objective="ValueRelation", teacher_layer=3),
            f"{FIELD}.teacherLayer: got 3, but the teacher the teacher has 2 layers; expected a number from 1 to that",
            id="a teacher's layer too many",
        ),
        pytest.param(
            "bert", "bert", ValueRelation(objective="ValueRelation", relation_heads=3),
            f"{FIELD}.relationHeads: got 3, expected a divisor of 16, the width of Value in the student", id="heads",
        ),
    ],
)  # fmt: skip
def test_models_that_cannot_be_compared_are_refused(student: str, teacher: str, spec: HiddenTerm, why: str):
    with pytest.raises(CheckpointInvalid) as failure:
        a_term(spec, a_model(student), a_model(teacher))

    assert str(failure.value) == why


# The training loop


def random_rows(count: int) -> TrainingRows:
    dice = torch.Generator().manual_seed(count)
    lengths = torch.randint(3, 12, (count,), generator=dice).tolist()
    ids = [torch.randint(1, 50, (size,), generator=dice).int().numpy() for size in lengths]
    return TrainingRows(Encoded.of(ids, pad_id=0), torch.zeros(count, dtype=torch.long))


def no_loss(answer: Any, _: Any) -> torch.Tensor:
    """Of the outputs, so that the student learns from the hidden states alone."""
    zero: torch.Tensor = 0.0 * answer.logits.sum(-1)
    return zero


def train_on(student: BertForSequenceClassification, term: HiddenStates, folder: Path, **options: Any) -> None:
    train(student, random_rows(20), recipe(), folder, losses=no_loss, extra=term, **options)


def a_pair(*, dropout: float = 0.0) -> tuple[BertForSequenceClassification, HiddenStates]:
    torch.manual_seed(3)
    student = BertForSequenceClassification(
        BertConfig(
            vocab_size=50, max_position_embeddings=16, hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout, **SIZES,
        )
    )  # fmt: skip
    return student, a_term(HiddenMSE(objective="HiddenMSE"), student, a_model(seed=2, hidden_size=24))


def weights(student: Any, term: HiddenStates) -> dict[str, Tensor]:
    return {**student.state_dict(), PROJECTION: term.get_parameter(PROJECTION).detach()}


class RowsWithItems:
    """Three rows with 2, 1 and no item."""

    lengths = [7, 7, 7]
    weights = [2, 1, 0]

    def batch(self, rows: Tensor, *, width: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        inside = torch.arange(width) < torch.tensor(self.weights)[rows].unsqueeze(1)
        return {name: tensor[rows, :width] for name, tensor in inputs().items()}, {"inside": inside}


def test_a_row_is_weighed_by_its_items_as_in_the_other_losses():
    student, term = a_pair()
    optimizer = build_optimizer(student, Training(), more=term.parameters())
    work = Work(
        student,
        RowsWithItems(),  # type: ignore[arg-type]  # the rest is not read
        CPU,
        lambda answer, compared: 0.0 * compared["inside"].sum(-1),
        Training(),
        optimizer,
        CPU,
        extra=term,
    )
    student.eval()

    got = work.losses(torch.arange(3), width=7, full=False)

    torch.testing.assert_close(got, losses_of(term, student) * torch.tensor([2.0, 1.0, 0.0]))


def test_the_projection_is_trained_with_the_student_in_micro_batches_of_any_size(tmp_path: Path):
    found = []
    for micro in (8, 3):
        student, term = a_pair()
        before = copy.deepcopy(weights(student, term))
        train_on(student, term, tmp_path, micro_batch_size=micro)
        found.append(weights(student, term))
        assert (found[-1][PROJECTION] - before[PROJECTION]).abs().max() > 1e-3

    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name], rtol=0, atol=2e-5)


@pytest.mark.parametrize("stop_at", [1, 4])
def test_a_resumed_training_gives_the_same_bytes_also_of_the_projection(tmp_path: Path, stop_at: int):
    whole, whole_term = a_pair(dropout=0.1)
    train_on(whole, whole_term, tmp_path)

    student, term = a_pair(dropout=0.1)
    stopped = train_until_stopped(
        student, random_rows(20), recipe(), tmp_path, at_look=stop_at, losses=no_loss, extra=term
    )
    fresh, fresh_term = a_pair(dropout=0.1)
    with torch.no_grad():
        fresh_term.get_parameter(PROJECTION).zero_()  # the state must bring it back
    train_on(fresh, fresh_term, tmp_path, resume_from=stopped.state)

    assert stopped.step == stop_at
    for name, value in weights(whole, whole_term).items():
        assert torch.equal(value, weights(fresh, fresh_term)[name]), name


@pytest.mark.parametrize("spec", [HiddenMSE(objective="HiddenMSE"), ValueRelation(objective="ValueRelation")])
def test_recomputed_activations_change_neither_losses_nor_gradients(spec: HiddenTerm):
    """Layers are then called a second time, in the backward pass."""
    found = []
    for recomputes in (False, True):
        student, teacher = a_model(seed=1), a_model(seed=2, hidden_size=24, num_hidden_layers=4)
        term = a_term(spec, student.train(), teacher)
        if recomputes:
            student.activation_checkpointing_enable({"use_reentrant": False})
        for step in range(2):
            torch.manual_seed(step)  # the same dropout
            losses = losses_of(term, student)
            losses.sum().backward()
        found.append([losses.detach(), *(tensor.grad for tensor in student.parameters() if tensor.grad is not None)])

    (plain, *gradients), (recomputed, *others) = found
    torch.testing.assert_close(recomputed, plain)
    assert len(gradients) == len(others) > 3
    torch.testing.assert_close(others, gradients)


def test_recomputed_outputs_are_not_taken_for_those_of_the_next_pass():
    """They would be kept in memory, and hide that compiled code has skipped the hooks."""
    student = a_model(seed=1).train()
    student.activation_checkpointing_enable({"use_reentrant": False})
    value = student.bert.encoder.layer[0].attention.self.value
    recorder = Recorder(student, {"Value": value}, is_trained=True)
    logits = student(**inputs()).logits

    recorder.take()
    logits.sum().backward()

    with pytest.raises(RuntimeError, match="no output was recorded of Value"):
        recorder.take()
