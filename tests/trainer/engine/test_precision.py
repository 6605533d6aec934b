"""bfloat16: which parts of a model compute and are kept in it."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.pytorch_utils import Conv1D

from distillchain_trainer.engine.device.precision import compute_head_in_float32, keep_products_in_bfloat16
from distillchain_trainer.engine.encoding.encoded import Encoded
from distillchain_trainer.engine.passes.shared_forward import all_outputs
from distillchain_trainer.engine.ranks.world import join_world
from distillchain_trainer.errors import CheckpointInvalid, translate_unforeseen
from distillchain_trainer.models.checkpoints import Checkpoint
from distillchain_trainer.models.loaded import Loaded
from distillchain_trainer.stage.prepare import load_teacher
from trainer import checkpoint_parts
from trainer.checkpoint_parts import DECODER, TINY, save_classifier
from trainer.loop_parts import a_student
from trainer.parts import an_order, run_here, save_bert
from trainer.rank_parts import Outcome, start_ranks

pytestmark = pytest.mark.models

GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0}
END = 3
IDS = torch.cat([torch.arange(4, 26).reshape(2, 11), torch.full((2, 1), END)], dim=1)


def a_teacher(checkpoint: Checkpoint) -> Loaded:
    return checkpoint_parts.load_teacher(checkpoint.folder)


def logits_of(model: Any) -> Tensor:
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        logits: Tensor = model(input_ids=IDS).logits
    return logits


def a_model(auto: Any, kind: str, **config: Any) -> Any:
    torch.manual_seed(0)
    ids = {"vocab_size": 64, "pad_token_id": 0, "eos_token_id": END}
    return auto.from_config(AutoConfig.for_model(kind, **ids, **config)).eval()


def test_under_bfloat16_the_head_computes_in_float32():
    """A logit of bfloat16 has three digits; the products of the head cost nothing."""
    student = a_student().eval()
    names = list(student.state_dict())
    assert logits_of(student).dtype is torch.bfloat16

    compute_head_in_float32(student, "bfloat16")

    for model in (student, copy.deepcopy(student)):
        assert logits_of(model).dtype is torch.float32
    assert list(student.state_dict()) == names


@pytest.mark.parametrize(
    "auto, kind, config",
    [
        pytest.param(AutoModelForSequenceClassification, "bert", TINY, id="bert"),
        pytest.param(AutoModelForSequenceClassification, "roberta", TINY, id="a head of several layers"),
        pytest.param(AutoModelForSequenceClassification, "albert", {**TINY, "embedding_size": 8}, id="one layer twice"),
        pytest.param(AutoModelForSequenceClassification, "t5", T5, id="code that looks at types of weights"),
        pytest.param(AutoModelForCausalLM, "llama", DECODER, id="words of their own in the head"),
        pytest.param(AutoModelForCausalLM, "llama", {**DECODER, "tie_word_embeddings": True}, id="words shared with the head"),
        pytest.param(AutoModelForCausalLM, "gpt2", GPT2, id="layers with transposed weights"),
    ],
)  # fmt: skip
def test_weights_of_products_in_bfloat16_give_the_same_answers(auto: Any, kind: str, config: dict[str, Any]):
    model = a_model(auto, kind, **config)
    compute_head_in_float32(model, "bfloat16")
    before, tensors = logits_of(model), dict(model.state_dict())

    keep_products_in_bfloat16(model, "bfloat16")

    assert torch.equal(logits_of(model), before)
    after = dict(model.state_dict())
    assert after.keys() == tensors.keys()
    linear = {
        f"{name}.weight" for name, module in model.named_modules() if isinstance(module, torch.nn.Linear | Conv1D)
    }
    changed = {name for name, tensor in after.items() if tensor.dtype is torch.bfloat16 and tensor.dim() > 1}
    assert changed <= linear
    assert changed


@pytest.mark.parametrize(
    "kind, experts",
    [("mixtral", "num_local_experts"), ("qwen3_moe", "num_experts"), ("granitemoe", "num_local_experts")],
)
def test_experts_compute_in_bfloat16_if_their_weights_are_kept_in_it(kind: str, experts: str):
    """All of them answer here, so that rounding chooses no other ones."""
    sizes = {**DECODER, experts: 2, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 8}
    model = a_model(AutoModelForCausalLM, kind, **sizes)
    with torch.no_grad():
        exact = model(input_ids=IDS).logits
    before = logits_of(model)

    keep_products_in_bfloat16(model, "bfloat16")

    nbytes = sum(weight.nbytes for weight in model.parameters() if weight.dim() == 3)
    assert nbytes == 2 * sum(weight.numel() for weight in model.parameters() if weight.dim() == 3) > 0
    assert not torch.equal(logits_of(model), before)
    torch.testing.assert_close(logits_of(model).float(), exact, rtol=0, atol=0.02 * float(exact.abs().max()))


@pytest.mark.parametrize("precision, product", [("bfloat16", torch.bfloat16), ("float32", torch.float32)])
def test_a_stage_keeps_its_teacher_as_its_passes_compute(tmp_path: Path, precision: str, product: torch.dtype):
    """A teacher of 8 billion parameters then takes 17 GB of a GPU and not 48."""
    save_bert(tmp_path / "teacher")
    context: Any = SimpleNamespace(is_sharded=False, order=an_order(tmp_path, training={"precision": precision}))

    loaded = load_teacher(context, a_teacher, checkpoint_parts.fetch(tmp_path / "teacher"))

    types = {name: weight.dtype for name, weight in loaded.model.named_parameters()}
    assert {kind for name, kind in types.items() if "query" in name or ".dense." in name} == {product}
    assert {kind for name, kind in types.items() if "embeddings" in name or "classifier" in name} == {torch.float32}


def _answer_split(folder: Path, root: Path) -> Outcome:
    """A teacher of a stage that is split over all ranks, beside one that is not."""
    world, order = join_world(), an_order(root, training={"precision": "bfloat16"})
    encoded = Encoded.of([np.arange(3, 5 + row % 7, dtype=np.int32) for row in range(21)], pad_id=0)
    found = {}
    with world.membership():
        for is_sharded in (False, True):
            context: Any = SimpleNamespace(is_sharded=is_sharded, order=order, world=world)
            loaded = load_teacher(context, a_teacher, checkpoint_parts.fetch(root / "teacher"))
            found[is_sharded], _ = all_outputs(
                loaded.model, encoded, lambda answer, _: answer.logits, precision="bfloat16", on_batch=lambda *_: None, world=world
            )  # fmt: skip
            types = {weight.dtype for name, weight in loaded.model.named_parameters() if "query" in name}
    return {"distance": float(np.abs(found[True] - found[False]).max()), "types": [str(kind) for kind in types]}


@pytest.mark.parametrize("size", [2, 3])
def test_a_split_teacher_keeps_its_parts_as_its_passes_compute(tmp_path: Path, size: int):
    save_bert(tmp_path / "teacher")

    outcomes = start_ranks(_answer_split, tmp_path, size, tmp_path, name="split").wait()

    assert [outcome["types"] for outcome in outcomes] == [["torch.bfloat16"]] * size
    assert max(outcome["distance"] for outcome in outcomes) < 1e-6


def test_logits_of_a_student_have_all_their_digits(root: Path):
    answer = run_here(an_order(root, training={"precision": "bfloat16", "epochs": 1}), root)

    lines = Path(answer.checkpoint[7:], "../results/predictions-validation.jsonl").read_text().splitlines()
    logits = torch.tensor([json.loads(line)["logits"] for line in lines])
    assert (logits - logits.bfloat16()).abs().max() > 1e-3 * logits.abs().max()


def test_a_model_whose_code_fails_in_bfloat16_is_refused(root: Path):
    """It crashed, and was retried."""
    save_classifier(root / "deberta", "deberta", **TINY)

    with pytest.raises(RuntimeError) as failure:
        run_here(an_order(root, teacher={"model": f"file://{root}/deberta"}, training={"precision": "bfloat16"}), root)

    found = translate_unforeseen(failure.value)
    assert isinstance(found, CheckpointInvalid)
    assert str(found).endswith("; use training.precision: float32")
