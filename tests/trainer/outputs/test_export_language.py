"""Exports of language models to ONNX, with a cache of keys and values, as a server without our package uses them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from distillchain_api.graph import build_plan
from distillchain_api.resource.spec import parse_chain
from distillchain_api.wire.answer import Committed
from distillchain_api.wire.export import ExportRecord
from distillchain_trainer.engine.encoding.encoded import Encoded
from distillchain_trainer.errors import ExportInvalid
from distillchain_trainer.export import decoder, graphs, onnx_file
from distillchain_trainer.export.graphs import GraphsWithCache, graphs_for
from distillchain_trainer.models.loaded import Loaded
from smollm2.texts import as_chat
from trainer.language_parts import HELD_OUT, a_chain_document, a_task_document, save_llama, write_sentences
from trainer.parts import run_here

pytestmark = pytest.mark.models

WHO = "export.onnx of stage small"
SIZES = {
    "vocab_size": 60,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
KINDS: dict[str, dict[str, Any]] = {
    "llama": SIZES,
    "gpt2": {"vocab_size": 60, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, "pad_token_id": 0},
    # Positions by distance, without position ids.
    "bloom": {"vocab_size": 60, "hidden_size": 16, "n_layer": 2, "n_head": 2, "pad_token_id": 0},
    # Every second layer reads the last four tokens, fewer than the texts have.
    "gemma2": {**SIZES, "head_dim": 8, "sliding_window": 4},
}


def a_student(root: Path, **template: Any) -> Committed:
    """A Llama of one layer, taught by one of two; its rows are chats."""
    save_llama(root / "teacher")
    write_sentences(root / "data", as_chat)
    document = a_chain_document(
        root,
        task=a_task_document(root / "data", "messages"),
        teacher={"model": f"file://{root}/teacher", "fineTune": {}},
        template={
            "training": {"epochs": 3, "batchSize": 8, "learningRate": 0.02},
            "export": {"onnx": {"quantize": "int8"}},
            **template,
        },
        stages=[{"name": "small", "student": {"fromTeacher": {"layers": 1}}}],
    )
    orders = [stage.work_order for stage in build_plan(parse_chain(document)).stages]
    return [run_here(order, root, attempt=order.stage) for order in orders][-1]


def path_of(uri: str) -> Path:
    return Path(uri.removeprefix("file://"))


def generated(path: Path, prompts: list[str], *, tokens: int) -> list[list[int]]:
    """Greedy continuations, with onnxruntime and the tokenizer alone."""
    tokenizer = AutoTokenizer.from_pretrained(path.parent, padding_side="left", pad_token="</s>")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    batch = tokenizer(prompts, padding=True, return_tensors="np")
    ids, mask = batch["input_ids"], batch["attention_mask"]
    positions = (mask.cumsum(axis=1) - 1).clip(0)
    past = {
        item.name: np.zeros((len(prompts), item.shape[1], 0, item.shape[3]), dtype=np.float32)
        for item in session.get_inputs()
        if item.name.startswith("past_key_values")
    }
    found = []
    for _ in range(tokens):
        columns = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
        logits, *cache = session.run(None, columns | past)
        ids = logits[:, -1:].argmax(axis=-1)
        found.append(ids)
        mask = np.concatenate([mask, np.ones_like(ids)], axis=1)
        positions = positions[:, -1:] + 1
        past = dict(zip(past, cache, strict=True))
    continuations: list[list[int]] = np.concatenate(found, axis=1).tolist()
    return continuations


def test_an_exported_language_model_generates_what_its_checkpoint_does(tmp_path: Path):
    answer = a_student(tmp_path)

    assert answer.export_failure is None
    plain, int8 = answer.exports
    prompts = ["<|im_start|> user : Go on: Monday Tuesday", "<|im_start|> user : Go on: May June July August"]
    folder = path_of(answer.checkpoint)
    tokenizer, model = (kind.from_pretrained(folder) for kind in (AutoTokenizer, AutoModelForCausalLM))
    model.generation_config.eos_token_id = None  # the loop above goes on at the end of a text too
    want = []
    for prompt in prompts:
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        want.append(model.generate(input_ids=ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :].tolist())
    assert generated(path_of(plain.uri), prompts, tokens=12) == want
    assert (path_of(plain.uri).parent / "chat_template.jinja").is_file()
    record = ExportRecord.parse((tmp_path / f"store/stages/{answer.digest}/exports/onnx-int8.json").read_text())
    assert [found.format for found in record.formats] == ["pytorch", "onnx", "onnx-int8"]
    assert record.rows is None
    ours, exported, rounded = (found.validation["tokenCrossEntropy"] for found in record.formats)
    assert exported == pytest.approx(ours, rel=1e-5)
    assert rounded == pytest.approx(ours, rel=0.02)
    assert record.formats[1].different_predictions == 0
    assert rounded != ours
    assert int8.size_bytes < plain.size_bytes


def a_model(kind: str, fields: dict[str, Any] | None = None) -> Loaded:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **(fields or KINDS[kind]))
    model = AutoModelForCausalLM.from_config(config).eval()  # type: ignore[no-untyped-call]
    # Larger than transformers draws them, so that a token far back changes the logits.
    for parameter in model.parameters():
        parameter.data.mul_(4)
    return Loaded(model, None, kind, pretrained=False)


def some_rows(*lengths: int, below: int = 60) -> Encoded:
    dice = np.random.default_rng(0)
    return Encoded.of([dice.integers(3, below, size=length).astype(np.int32) for length in lengths], pad_id=0)


def the_graphs(kind: str) -> GraphsWithCache:
    return GraphsWithCache(a_model(kind), some_rows(1, 7, 23, 2, 12), WHO)


@pytest.mark.parametrize("kind", KINDS)
def test_graphs_of_many_architectures_agree_with_their_models(kind: str, tmp_path: Path):
    made = the_graphs(kind)

    made.write(tmp_path / "model.onnx")

    made.check(tmp_path / "model.onnx")
    exported = made.load(tmp_path / "model.onnx")
    inputs = made.encoded.batch([2, 3, 0])
    inside = inputs["attention_mask"].bool()
    with torch.no_grad():
        want = made.loaded.model(**inputs).logits[inside]
    torch.testing.assert_close(exported(**inputs).logits[inside], want, atol=1e-4, rtol=1e-4)
    for cuts in ([1], [1, 2, 3, 4], [22]):
        torch.testing.assert_close(exported.in_pieces(inputs, cuts)[inside], want, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_int8_takes_a_quarter_of_the_products_of_every_architecture(kind: str, tmp_path: Path):
    """A bias makes another operation of a product, which GPT-2's and OPT's layers are."""
    wide = {"hidden_size": 256, "n_embd": 256, "intermediate_size": 512, "vocab_size": 20}
    fields = KINDS[kind] | {name: size for name, size in wide.items() if name in KINDS[kind]}
    made = GraphsWithCache(a_model(kind, fields), some_rows(5, below=20), WHO)

    made.write(tmp_path / "model.onnx")
    made.quantize(tmp_path / "model.onnx", tmp_path / "model.int8.onnx")

    plain, int8 = (onnx_file.size_of(tmp_path / name) for name in ("model.onnx", "model.int8.onnx"))
    assert int8 < 0.4 * plain
    inputs = made.encoded.batch([0])
    ours, theirs = (made.load(tmp_path / name)(**inputs).logits for name in ("model.onnx", "model.int8.onnx"))
    assert 0 < (ours - theirs).abs().max() < 0.1 * ours.abs().max()


def test_a_graph_whose_cache_is_wrong_is_refused_and_the_stage_stays_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    class Forgetful(decoder.OnnxDecoder):
        def run(self, outputs: list[str] | None, inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
            logits, *cache = super().run(outputs, inputs)
            return [logits, *map(torch.zeros_like, cache)]

    monkeypatch.setattr(graphs, "OnnxDecoder", Forgetful)

    answer = a_student(tmp_path)

    assert answer.export_failure is not None
    assert answer.export_failure.message.startswith(
        f"{WHO}: with its cache of keys and values, the exported graph computes something else: logits differ by up to"
    )
    assert answer.exports == []
    assert path_of(answer.checkpoint).is_dir()


@pytest.mark.parametrize("kind", ["qwen3_moe", "mixtral", "deepseek_v3"])
def test_a_mixture_of_experts_is_refused(kind: str):
    loaded = Loaded(SimpleNamespace(config=AutoConfig.for_model(kind)), None, kind, False)

    with pytest.raises(ExportInvalid, match=f"^{WHO}: a {kind} is a mixture of experts, .+; remove export.onnx"):
        graphs_for("CausalLM", loaded, some_rows(5), who=WHO)


def test_a_refused_export_says_why_in_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    mixture = {**SIZES, "head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
    model = a_model("qwen3_moe", mixture).model  # torch's exporter cannot export it

    with pytest.raises(
        ExportInvalid, match=f"^{WHO}: the model cannot be exported to ONNX: .+; remove export"
    ) as error:
        decoder.write_decoder(model, tmp_path / "model.onnx", who=WHO)

    assert len(str(error.value)) < 500
    assert capfd.readouterr().err.count("\n") < 5


def test_a_model_that_keeps_more_than_keys_and_values_is_refused(tmp_path: Path):
    config = AutoConfig.for_model("mamba", vocab_size=60, hidden_size=16, num_hidden_layers=1, state_size=4)
    model = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]

    with pytest.raises(
        ExportInvalid, match=f"^{WHO}: mamba keeps more between two tokens .+; remove export.onnx of this stage$"
    ):
        decoder.write_decoder(model, tmp_path / "model.onnx", who=WHO)


def test_weights_that_do_not_fit_into_the_file_lie_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Their limit is lowered; the real one is 2 GiB."""
    made = the_graphs("llama")
    made.write(tmp_path / "whole.onnx")
    monkeypatch.setattr(onnx_file, "MOST_IN_ONE_FILE", 1000)

    made.write(tmp_path / "model.onnx")
    made.quantize(tmp_path / "model.onnx", tmp_path / "model.int8.onnx")

    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"whole.onnx", "model.onnx", "model.onnx.data", "model.int8.onnx", "model.int8.onnx.data"}
    sizes = [onnx_file.size_of(tmp_path / name) for name in ("whole.onnx", "model.onnx")]
    assert sizes[1] == pytest.approx(sizes[0], rel=0.1)
    assert str(Path(torch.__file__).parents[1]).encode() not in (tmp_path / "whole.onnx").read_bytes()
    made.check(tmp_path / "model.onnx")
    inputs = made.encoded.batch([2])
    plain, int8 = (made.load(tmp_path / name)(**inputs).logits for name in ("model.onnx", "model.int8.onnx"))
    assert 0 < (plain - int8).abs().max() < 0.1 * plain.abs().max()


def test_a_large_validation_split_is_measured_in_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from distillchain_trainer.stage import export

    monkeypatch.setattr(export, "MOST_FLOPS", 1e6)

    answer = a_student(tmp_path, export={"onnx": {}})

    record = ExportRecord.parse((tmp_path / f"store/stages/{answer.digest}/exports/onnx.json").read_text())
    assert record.rows is not None
    assert 1 < record.rows < len(HELD_OUT) // 2
    assert f"{WHO}: all formats are measured on {record.rows} of {len(HELD_OUT)} validation rows" in answer.warnings
    assert record.formats[0].validation["tokenCrossEntropy"] == pytest.approx(
        record.formats[1].validation["tokenCrossEntropy"], rel=1e-5
    )
