"""Mixtures of experts in bfloat16: a student in training computes as teachers and measured students do."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForSequenceClassification

from distillchain_trainer.engine.device.compiled import compile_layers
from distillchain_trainer.engine.device.experts import compute_experts_in_bfloat16
from distillchain_trainer.engine.device.precision import autocast, compute_head_in_float32, keep_products_in_bfloat16
from distillchain_trainer.engine.device.sharding import gather_weights, sharded_copy
from distillchain_trainer.engine.ranks.world import join_world
from distillchain_trainer.engine.training.optimizer import build_optimizer
from distillchain_trainer.engine.training.sharded_step import ShardedStep
from distillchain_trainer.engine.training.step import EagerStep, Work
from trainer.checkpoint_parts import DECODER
from trainer.loop_parts import CLASSES, distance, random_rows, recipe, row_losses
from trainer.rank_parts import Outcome, start_ranks

pytestmark = pytest.mark.models

KINDS = {"mixtral": "num_local_experts", "qwen3_moe": "num_experts"}
CPU = torch.device("cpu")


def a_mixture(kind: str = "mixtral", *, layers: int = 2) -> Any:
    """All of its experts answer for each token, so that rounding chooses no other ones."""
    torch.manual_seed(0)
    sizes = {**DECODER, KINDS[kind]: 3, "num_experts_per_tok": 3, "moe_intermediate_size": 32, "head_dim": 8}
    more = {"vocab_size": 50, "pad_token_id": 0, "num_labels": CLASSES, "num_hidden_layers": layers}
    model = AutoModelForSequenceClassification.from_config(AutoConfig.for_model(kind, **{**sizes, **more}))
    compute_head_in_float32(model, "bfloat16")
    return model


def in_bfloat16(model: Any) -> Any:
    compute_experts_in_bfloat16(model, "bfloat16")
    return model


def experts_of(model: Any) -> dict[str, Tensor]:
    return {name: weight.detach() for name, weight in model.named_parameters() if weight.dim() == 3}


def logits_of(model: Any) -> Tensor:
    inputs, _ = random_rows(9).batch(torch.arange(9), width=12)
    with torch.no_grad(), autocast(CPU, "bfloat16"):
        logits: Tensor = model(**inputs, use_cache=False).logits
    return logits


def train(
    model: Any, kind: type[EagerStep], *, precision: str = "bfloat16", recomputes: bool = False, **more: Any
) -> None:
    """Three steps over seven rows, so that the last micro-batch is smaller, and ranks have unequal shares."""
    training = recipe(precision=precision, batch_size=7)
    work = Work(model, random_rows(21), CPU, row_losses, training, build_optimizer(model, training), CPU, **more)
    step = kind(work, 4)
    if recomputes:
        step.recompute()
    for first in (0, 7, 14):
        step.run(list(range(first, first + 7)), stop=lambda: False)


def difference(model: Any, other: Any) -> float:
    """How far the experts of two models are apart, as a share of what a training has changed."""
    start = experts_of(a_mixture())
    apart = [(weight - experts_of(other)[name]).norm() for name, weight in experts_of(model).items()]
    moved = [(weight - start[name]).norm() for name, weight in experts_of(other).items()]
    return float(max(one / all_ for one, all_ in zip(apart, moved, strict=True)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_student_in_training_answers_as_the_student_that_is_measured(kind: str):
    """The curve of validation showed other answers than the final metrics, from products in float32."""
    student, in_float32 = in_bfloat16(a_mixture(kind)), a_mixture(kind)
    measured = copy.deepcopy(student)
    keep_products_in_bfloat16(measured, "bfloat16")

    assert torch.equal(logits_of(student), logits_of(measured))
    assert not torch.equal(logits_of(student), logits_of(in_float32))
    assert {weight.dtype for weight in student.parameters()} == {torch.float32}
    assert list(student.state_dict()) == list(in_float32.state_dict())


def test_experts_are_trained_in_bfloat16_as_in_float32_but_for_rounding():
    exact, rounded, recomputed = a_mixture(), in_bfloat16(a_mixture()), in_bfloat16(a_mixture())
    train(exact, EagerStep, precision="float32")
    train(rounded, EagerStep)
    train(recomputed, EagerStep, recomputes=True)

    assert 0 < difference(rounded, exact) < 0.2
    assert distance(recomputed, rounded) == 0


@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")
def test_layers_with_experts_are_compiled_together(monkeypatch: pytest.MonkeyPatch):
    graphs = []

    def count(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    student = in_bfloat16(a_mixture(layers=5))
    want = logits_of(student)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=count))
    compile_layers(student)

    assert torch.equal(logits_of(student), want)
    assert len(graphs) == 1


def _train_split(_: Path, __: Any) -> Outcome:
    world = join_world()
    with world.membership():
        whole, alone = in_bfloat16(a_mixture()), in_bfloat16(a_mixture())
        shapes = [sorted(weight.shape) for weight in experts_of(whole).values()]
        split = sharded_copy(whole, world, device=CPU)
        kept: list[torch.UntypedStorage] = []

        def keep(saved: Tensor) -> Tensor:
            if sorted(saved.shape) in shapes:  # also a transposed one
                kept.append(saved.untyped_storage())
            return saved

        split.register_forward_hook(lambda *_: sizes.append(sum(storage.nbytes() for storage in kept)))
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved):
            train(split, ShardedStep, world=world, sharded=True)
        gather_weights(split, whole, world)
        train(alone, EagerStep)
    return {"difference": difference(whole, alone), "kept": len(kept), "sizes": sizes}


@pytest.mark.parametrize("size", [2, 3])
def test_a_mixture_that_is_split_is_trained_as_a_whole_one_and_keeps_no_experts_for_the_backward_pass(
    tmp_path: Path, size: int
):
    outcomes = start_ranks(_train_split, tmp_path, size, name="split").wait()

    assert outcomes[0]["difference"] < 0.05
    for outcome in outcomes:
        assert outcome["kept"] > 0, "autograd keeps what FSDP then frees"
        assert outcome["sizes"]
        assert not any(outcome["sizes"])
