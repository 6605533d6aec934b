"""How models are asked: decoders make no cache of keys and values, which only generation reads."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from distillchain_api.resource.hidden import HiddenMSE
from distillchain_trainer.engine.device.calling import call_model
from distillchain_trainer.engine.device.compiled import compile_layers
from distillchain_trainer.engine.passes.forward import forward
from distillchain_trainer.hidden_states.term import Models, build_hidden_term
from trainer.checkpoint_parts import DECODER
from trainer.loop_parts import CLASSES, random_rows, recipe, train

pytestmark = pytest.mark.models

KINDS: dict[str, dict[str, Any]] = {
    "llama": DECODER,
    "qwen3": {**DECODER, "head_dim": 8},
    "gpt2": {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64},
    "gpt_neox": DECODER,
}


def a_decoder(kind: str, **config: Any) -> Any:
    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "pad_token_id": 0, "num_labels": CLASSES, **KINDS[kind], **config}
    return AutoModelForSequenceClassification.from_config(AutoConfig.for_model(kind, **sizes))


def caches_of(model: Any) -> list[Any]:
    """Grows by the cache, or None, of every answer of the model."""
    found: list[Any] = []
    model.register_forward_hook(lambda _, __, answer: found.append(answer.get("past_key_values")))
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_no_step_and_no_pass_keeps_keys_and_values(tmp_path: Path, kind: str):
    student, teacher, rows = a_decoder(kind), a_decoder(kind), random_rows(20)
    own, others = caches_of(student), caches_of(teacher)
    student(input_ids=torch.ones(1, 3, dtype=torch.long))
    assert own.pop() is not None, "a checkpoint asks for a cache"
    models = Models(student, teacher, "the student", "the teacher", "spec.stages[0].distillation.hidden")
    term = build_hidden_term(HiddenMSE(objective="HiddenMSE"), models, seed=1, device=torch.device("cpu"))

    train(student, rows, recipe(epochs=1), tmp_path, extra=term)
    list(forward(student, rows.encoded, lambda answer, _: answer.logits, precision="float32"))

    assert len(own) > len(others) > 1
    assert [*own, *others] == [None] * len([*own, *others])
    assert student.config.use_cache, "as it is saved: users of the student generate"


def test_a_class_that_leaves_the_setting_to_the_model_inside_it_keeps_none():
    sizes = {**DECODER, "vocab_size": 50, "num_local_experts": 2, "num_experts_per_tok": 1}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("granitemoe", **sizes))
    found = caches_of(model)

    for ask in (lambda inputs: model(**inputs), partial(call_model, model)):
        ask({"input_ids": torch.ones(1, 3, dtype=torch.long)})

    assert [cache is None for cache in found] == [False, True]


def test_all_layers_of_a_decoder_are_compiled_together(monkeypatch: pytest.MonkeyPatch):
    """With a cache each layer was compiled by itself, and those after the eighth not at all (torch's limit)."""
    graphs = []

    def count(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=count))
    model = a_decoder("llama", num_hidden_layers=11)
    inputs = {"input_ids": torch.arange(1, 9)[None].repeat(3, 1)}
    compile_layers(model)
    with torch.no_grad():
        found = call_model(model, inputs).logits

    assert found.isfinite().all()
    assert len(graphs) == 1
