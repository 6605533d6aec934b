"""LoRA students: only the adapter and the head are trained, and what is committed is a plain checkpoint."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from distillchain_api.graph import build_plan
from distillchain_api.resource.lora import Lora
from distillchain_api.resource.spec import parse_chain
from distillchain_api.wire.work_order import WorkOrder
from distillchain_trainer.engine.training.data_order import epoch_batches
from distillchain_trainer.engine.training.step import EagerStep
from distillchain_trainer.engine.training.widths import widths_up_to
from distillchain_trainer.errors import CheckpointInvalid
from distillchain_trainer.models.lora import add_adapter, keep_frozen_in_bfloat16, merge_adapter, trained_parameters
from smollm2.texts import as_text
from trainer.checkpoint_parts import DECODER, TINY, load_student, save_classifier
from trainer.engine.test_modes import Recorded, a_work
from trainer.language_parts import a_chain_document, a_task_document, save_llama, write_sentences
from trainer.loop_parts import a_student, forget, random_rows, recipe, train, train_until_stopped
from trainer.loop_parts import distance as distance_of
from trainer.lora_parts import with_adapter
from trainer.parts import an_order, manifest_of, run_here, save_bert, weights_of
from trainer.rank_parts import Attempt, distance, start_stage

pytestmark = pytest.mark.models

FIELD = "spec.stages[0].student.lora"
LORA = {"rank": 4, "alpha": 8, "dropout": 0.1}


def logits(model: Any) -> torch.Tensor:
    ids = torch.tensor([[2, 5, 9, 7, 3]])
    model.eval()
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=ids).logits
    return found


@pytest.mark.parametrize(
    "kind, config",
    [
        ("bert", TINY),
        ("albert", {**TINY, "num_hidden_layers": 2, "embedding_size": 8}),  # two layers with the same weights
        ("bert_hash", {**TINY, "hidden_size": 16}),
        ("gpt2", {"n_embd": 16, "n_layer": 1, "n_head": 2}),  # its weights are transposed
        ("llama", DECODER),
    ],
)
def test_a_merged_model_answers_as_with_its_adapter_and_has_its_plain_names(
    tmp_path: Path, kind: str, config: dict[str, Any]
):
    folder = save_classifier(tmp_path / kind, kind, **config)
    model = load_student(folder).model
    names, before = list(model.state_dict()), logits(model)

    with_adapter(model)
    torch.testing.assert_close(logits(model), before, rtol=0, atol=0)
    with_adapter_moved = logits(with_adapter(load_student(folder).model, moved=True))
    merged = with_adapter(load_student(folder).model, moved=True)
    merge_adapter(merged)

    assert (with_adapter_moved - before).abs().max() > 1e-2
    torch.testing.assert_close(logits(merged), with_adapter_moved, rtol=1e-5, atol=1e-5)
    assert list(merged.state_dict()) == names
    assert all(parameter.requires_grad for parameter in merged.parameters())


def test_the_adapter_and_the_head_are_trained_and_nothing_else(tmp_path: Path):
    folder = save_bert(tmp_path / "bert", labels=None)
    model = with_adapter(load_student(folder).model, targetModules=["query", "value"])

    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}

    # The pooler is part of the head: a checkpoint of a masked language model has none.
    head = {f"{module}.{kind}" for module in ("bert.pooler.dense", "classifier") for kind in ("weight", "bias")}
    attention = "bert.encoder.layer.0.attention.self"
    adapter = {f"{attention}.{name}.lora_{part}.default.weight" for name in ("query", "value") for part in ("A", "B")}
    assert trained == head | adapter
    # rank 2, width 16, two classes
    assert trained_parameters(model) == 2 * 2 * 2 * 16 + (16 * 16 + 16) + (2 * 16 + 2)


def test_the_head_of_a_language_model_stays_as_it_is(tmp_path: Path):

    model = with_adapter(AutoModelForCausalLM.from_pretrained(save_llama(tmp_path / "llama")))

    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]

    assert all("lora_" in name and "embed" not in name and "lm_head" not in name for name in trained)
    assert len(trained) == 2 * 2 * 7, "seven linear layers in each of two"


def test_names_that_no_layer_has_are_refused_with_those_that_exist(tmp_path: Path):

    model = AutoModelForCausalLM.from_pretrained(save_llama(tmp_path / "llama"))

    with pytest.raises(CheckpointInvalid) as failure:
        add_adapter(model, Lora.parse({"targetModules": ["q_proj", "query", "lm_head"]}), seed=0, field=FIELD)

    assert str(failure.value) == (
        f'{FIELD}.targetModules: got ["lm_head", "query"], expected names of linear layers of this llama: down_proj, '
        "gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj"
    )


def test_layers_that_share_a_weight_are_refused():
    """Each has an adapter of its own, and all of them were added to the one weight: another student was committed."""
    config = AutoConfig.for_model(
        "zamba", vocab_size=40, hidden_size=16, intermediate_size=32, num_hidden_layers=9, num_attention_heads=2,
        num_key_value_heads=2, n_mamba_heads=2, pad_token_id=0,
    )  # fmt: skip
    model = AutoModelForSequenceClassification.from_config(config)

    with pytest.raises(CheckpointInvalid) as failure:
        add_adapter(model, Lora(), seed=0, field=FIELD)

    assert str(failure.value) == (
        f"{FIELD}: model.layers.2.shared_transf.self_attn.q_proj and model.layers.7.shared_transf.self_attn.q_proj of this "
        "zamba share one weight, expected layers that share none, because each adapter is added to the weight of its layer; name "
        "others in targetModules, or remove lora"
    )
    add_adapter(model, Lora(target_modules=["layers.0.mamba.out_proj"]), seed=0, field=FIELD)


def test_a_captured_step_gives_the_weights_of_an_eager_one():
    start = with_adapter(a_student())
    eager, captured = (a_work(copy.deepcopy(start), 33, batch_size=8) for _ in range(2))
    plain = EagerStep(eager, 8)
    recorded = Recorded(captured, 8, widths=widths_up_to(max(captured.rows.lengths)))

    for batch in [batch for epoch in range(2) for batch in epoch_batches(eager.rows.lengths, 8, seed=1, epoch=epoch)]:
        plain.run(batch, stop=lambda: False)
        recorded.run(batch)

    assert sum(recorded.replays.values()) > 0
    assert distance_of(eager.model, captured.model) < 1e-5
    assert distance_of(eager.model, start) > 1e-3


@pytest.mark.parametrize("kind", ["deepseek_v3", "qwen3_next"])
def test_a_mixture_of_experts_gets_adapters_beside_its_linear_layers(kind: str):
    """peft took other layers than it was given, and merged experts contained themselves: the student was lost at its commit."""
    sizes = {
        **DECODER,
        "num_hidden_layers": 2,
        "vocab_size": 50,
        "head_dim": 8,
        "n_routed_experts": 4,
        "n_group": 1,
        "topk_group": 1,
        "num_experts_per_tok": 2,
    }
    ranks = {
        "q_lora_rank": 8,
        "kv_lora_rank": 8,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
        "num_experts": 4,
    }
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes, **ranks))
    names = list(model.state_dict())
    layers = {name for name, module in model.model.named_modules() if isinstance(module, torch.nn.Linear)}

    add_adapter(model, Lora.parse({"rank": 2, "dropout": 0.1}), seed=0, field=FIELD)

    assert {
        name.removeprefix("model.").split(".lora_A")[0] for name, _ in model.named_parameters() if ".lora_A." in name
    } == layers
    merge_adapter(model)
    assert list(model.state_dict()) == names


def test_the_head_of_a_language_model_is_frozen_although_it_has_layers_of_its_own():
    """They were trained, and with them the word embeddings that they share, which could not be saved."""
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("bert", is_decoder=True, vocab_size=50, **TINY))

    with_adapter(model)

    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert all(".lora_" in name for name in trained)


@pytest.mark.parametrize("kind", ["bert", "llama", "gpt2"])
def test_frozen_weights_in_bfloat16_give_the_same_student(tmp_path: Path, kind: str):
    """They are kept as autocast converts them; the adapter is merged into those of the checkpoint."""
    sizes = {"bert": TINY, "llama": DECODER, "gpt2": {"n_embd": 16, "n_layer": 1, "n_head": 2}}[kind]
    config = AutoConfig.for_model(kind, vocab_size=50, pad_token_id=0, num_labels=3, **sizes)
    torch.manual_seed(1)
    start = AutoModelForSequenceClassification.from_config(config)
    plain, kept = (with_adapter(copy.deepcopy(start), dropout=0.2) for _ in range(2))

    keep_frozen_in_bfloat16(kept)

    types = {name: weight.dtype for name, weight in kept.named_parameters()}
    assert all(types[name] is torch.float32 for name, weight in kept.named_parameters() if weight.requires_grad)
    assert torch.bfloat16 in types.values()
    for model in (plain, kept):
        train(model, random_rows(61), recipe(precision="bfloat16"), tmp_path / str(id(model)))
        merge_adapter(model)
    assert distance_of(plain, start) > 1e-3
    assert distance_of(plain, kept) == 0.0
    assert {weight.dtype for weight in kept.parameters()} == {torch.float32}


def test_a_state_holds_what_is_trained_and_is_resumed_bit_by_bit(tmp_path: Path):
    rows, training, start = random_rows(61), recipe(), with_adapter(a_student(), dropout=0.2)
    whole, first, second = (copy.deepcopy(start) for _ in range(3))
    train(whole, rows, training, tmp_path / "whole")

    state, step = train_until_stopped(first, rows, training, tmp_path / "first", at_look=5).state
    forget(second)
    train(second, rows, training, tmp_path / "second", resume_from=(state, step))

    assert distance_of(whole, second) == 0.0
    with safetensors.safe_open(state / "model.safetensors", framework="pt") as file:
        saved = set(file.keys())
    assert saved == {name for name, parameter in start.named_parameters() if parameter.requires_grad}


def test_a_state_that_lacks_a_trained_weight_is_refused(tmp_path: Path):
    from distillchain_trainer.engine.training.training_state import load_weights, save_weights

    save_weights(with_adapter(a_student(), targetModules=["query"]), tmp_path)

    with pytest.raises(RuntimeError, match=r"missing \['bert.*value.lora_A"):
        load_weights(with_adapter(a_student(), targetModules=["query", "value"]), tmp_path)


def language_orders(root: Path, student: dict[str, Any], precision: str) -> list[WorkOrder]:
    """A fine-tuned teacher and its LoRA student."""
    write_sentences(root / "data", as_text)
    document = a_chain_document(
        root,
        task=a_task_document(root / "data"),
        teacher={"model": f"file://{root}/start", "fineTune": {}},
        template={"training": {"epochs": 3, "batchSize": 8, "learningRate": 0.02, "precision": precision}},
        stages=[{"name": "small", "student": {**student, "lora": LORA}}],
    )
    return [stage.work_order for stage in build_plan(parse_chain(document)).stages]


@pytest.mark.parametrize("start, precision", [("model", "float32"), ("model", "bfloat16"), ("fromTeacher", "bfloat16")])
def test_a_language_model_is_committed_as_a_plain_checkpoint(tmp_path: Path, start: str, precision: str):

    save_llama(tmp_path / "start")
    save_llama(tmp_path / "other", seed=1)
    student: dict[str, Any] = {"model": f"file://{tmp_path}/other"} if start == "model" else {start: {"layers": 1}}
    orders = language_orders(tmp_path, student, precision)
    for order in orders:
        answer = run_here(order, tmp_path, attempt=order.stage)

    manifest = manifest_of(tmp_path, answer.digest)
    folder = Path(answer.checkpoint.removeprefix("file://"))
    merged = AutoModelForCausalLM.from_pretrained(folder)
    assert not [path.name for path in folder.iterdir() if "adapter" in path.name]
    assert merged.dtype is torch.float32
    assert manifest.student.parameters == merged.num_parameters()
    layers = 2 if start == "model" else 1
    # rank 4: q 16+16, k and v 16+8 each, o 16+16, three matrices of the MLP 16+32 each
    assert manifest.run.trained_parameters == layers * 4 * (32 + 24 + 24 + 32 + 3 * 48)
    assert manifest.environment["peft"]
    assert manifest.recipe["student"]["lora"] == {"rank": 4, "alpha": 8, "dropout": 0.1}
    if start == "model":
        before = AutoModelForCausalLM.from_pretrained(tmp_path / "other").state_dict()
        after = merged.state_dict()
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        assert changed == {name for name in before if "proj" in name}
    card = (folder / "README.md").read_text()
    assert f"LoRA of rank 4 trained {manifest.run.trained_parameters:,} parameters, which are merged" in card


def test_a_finished_student_that_missed_its_gate_is_merged_by_the_next_attempt(root: Path):
    """Its state holds the adapter alone."""
    from distillchain_trainer.errors import GateNotMet

    save_bert(root / "start", labels=None)
    parts: dict[str, Any] = {
        "student": {"model": f"file://{root}/start", "lora": LORA},
        "training": {"epochs": 1, "learningRate": 1e-6},  # too little to reach the gate
    }
    plain = run_here(an_order(root, storage={"uri": f"file://{root}/plain"}, **parts), root, attempt="plain")
    with pytest.raises(GateNotMet):
        run_here(an_order(root, gate={"minMetric": 1.0}, **parts), root, attempt="first")

    answer = run_here(an_order(root, **parts), root, attempt="second")

    assert manifest_of(root, answer.digest).run.resumed
    assert weights_of(answer) == weights_of(plain)


def several(root: Path, store: str, *, sharding: str = "None") -> WorkOrder:
    return an_order(
        root,
        student={"model": f"file://{root}/start", "lora": {**LORA, "dropout": 0}},
        storage={"uri": f"file://{root}/{store}"},
        template={"parallelism": {"processesPerNode": 2, "sharding": sharding}, "microBatchSize": 4},
    )


@pytest.mark.parametrize("sharding", ["None", "Full"])
def test_several_processes_give_the_student_of_one(root: Path, sharding: str):
    save_bert(root / "start", num_hidden_layers=2, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, seed=5)
    alone = run_here(several(root, "alone"), root)

    answers = start_stage(Attempt(several(root, "store", sharding=sharding), "a"), root, 2).answers()

    assert distance(answers[0], alone) < 1e-5
    manifest = manifest_of(root, answers[0].digest)
    assert (
        manifest.run.trained_parameters
        == json.loads((root / f"alone/stages/{alone.digest}/manifest.json").read_text())["run"]["trainedParameters"]
    )


def test_values_are_compared_where_a_layer_has_an_adapter(root: Path):
    hidden = {"objective": "ValueRelation", "weight": 1.0}
    order = an_order(root, student={"model": f"file://{root}/teacher", "lora": LORA}, distillation={"hidden": hidden})

    assert run_here(order, root).student.parameters > 0
