"""Exports to ONNX: made from the committed weights, checked on all of validation, stored beside the checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from distillchain_api.graph import build_plan
from distillchain_api.metrics import Metric
from distillchain_api.resource.spec import parse_chain
from distillchain_api.tasks.causal_lm import TOKEN_CROSS_ENTROPY
from distillchain_api.wire.export import ExportRecord
from distillchain_store.errors import CheckpointCorrupt
from distillchain_trainer.errors import CheckpointInvalid, ExportInvalid
from distillchain_trainer.export import graphs, onnx_file
from distillchain_trainer.export.compare import difference, is_worse
from distillchain_trainer.models import bert_hash
from distillchain_trainer.stage import export
from trainer.parts import SMALL_BERT, an_order, run_here, sentences
from trainer.tagging_parts import a_chain_document as tagging_document
from trainer.tagging_parts import write_models

INT8 = {"export": {"onnx": {"quantize": "int8"}}}


def record_of(root: Path, digest: str, name: str = "onnx-int8") -> ExportRecord:
    return ExportRecord.parse((root / f"store/stages/{digest}/exports/{name}.json").read_text())


def path_of(uri: str) -> Path:
    return Path(uri.removeprefix("file://"))


def logits_of_onnx(path: Path, texts: list[str]) -> np.ndarray[Any, Any]:
    """As a server without our package computes them."""
    tokenizer = AutoTokenizer.from_pretrained(path.parent)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    tokens = tokenizer(texts, truncation=True, padding=True, return_tensors="np")
    return session.run(None, {item.name: tokens[item.name] for item in session.get_inputs()})[0]


@pytest.mark.models
@pytest.mark.parametrize("kind", ["bert", "bert-hash"])
def test_an_exported_stage_gives_the_logits_of_its_checkpoint(root: Path, kind: str):
    config = {**SMALL_BERT, **({"projections": 4} if kind == "bert-hash" else {})}
    student = {"architecture": {"modelType": kind, "config": config}, "tokenizer": f"file://{root}/teacher"}

    answer = run_here(an_order(root, student=student, template=INT8), root)

    plain, int8 = answer.exports
    assert (plain.format, int8.format) == ("onnx", "onnx-int8")
    texts = [text for text, _ in sentences(20, 9)] + ["good " * 40]
    bert_hash.register()
    folder = path_of(answer.checkpoint)
    tokenizer, model = (kind.from_pretrained(folder) for kind in (AutoTokenizer, AutoModelForSequenceClassification))
    with torch.no_grad():
        want = model(**tokenizer(texts, truncation=True, padding=True, return_tensors="pt")).logits.numpy()
    np.testing.assert_allclose(logits_of_onnx(path_of(plain.uri), texts), want, atol=1e-5)
    single = logits_of_onnx(path_of(plain.uri), texts[:1])
    np.testing.assert_allclose(single, want[:1], atol=1e-5, err_msg="a batch of one row")
    assert np.abs(logits_of_onnx(path_of(int8.uri), texts) - want).max() < 0.2
    record = record_of(root, answer.digest)
    assert [found.format for found in record.formats] == ["pytorch", "onnx", "onnx-int8"]
    assert record.formats[0].validation == record.formats[1].validation
    assert record.formats[1].different_predictions == 0
    assert path_of(int8.uri).stat().st_size == int8.size_bytes
    assert all(found.examples_per_second > 0 for found in record.formats)


@pytest.mark.models
def test_an_export_that_is_added_later_is_made_without_training_and_found_after_that(root: Path):
    before = run_here(an_order(root), root)
    weights = (path_of(before.checkpoint) / "model.safetensors").stat().st_mtime_ns

    added, again = (run_here(an_order(root, template=INT8), root, attempt=name) for name in ("added", "again"))

    assert (before.exports, before.digest) == ([], added.digest)
    assert added.reused
    assert again.exports == added.exports != []
    assert (path_of(before.checkpoint) / "model.safetensors").stat().st_mtime_ns == weights
    assert record_of(root, added.digest).attempt == "added"
    path_of(added.exports[0].uri).write_bytes(b"damaged")
    repaired = run_here(an_order(root, template=INT8), root, attempt="repaired")
    assert record_of(root, repaired.digest).attempt == "repaired"


@pytest.mark.models
def test_an_export_that_another_chain_with_this_stage_made_meanwhile_is_used(
    root: Path, monkeypatch: pytest.MonkeyPatch
):
    order = an_order(root, template={"export": {"onnx": {}}})
    first = run_here(order, root, attempt="first")
    record = root / f"store/stages/{order.digest}/exports/onnx.json"
    others = record.read_bytes()
    record.unlink()
    real = export.upload_export

    def upload(*arguments: Any) -> Any:
        record.write_bytes(others)
        return real(*arguments)

    monkeypatch.setattr(export, "upload_export", upload)

    answer = run_here(order, root, attempt="second")

    assert answer.exports == first.exports
    assert [path.name for path in record.parent.iterdir() if path.is_dir()] == ["first"], "no files without a record"


@pytest.mark.models
def test_a_wrong_graph_is_refused_with_both_metrics_and_the_stage_stays_committed(
    root: Path, monkeypatch: pytest.MonkeyPatch
):
    class Negated(onnx_file.OnnxModel):
        def forward(self, **inputs: torch.Tensor) -> Any:
            answer = super().forward(**inputs)
            answer.logits = -answer.logits
            return answer

    monkeypatch.setattr(graphs, "OnnxModel", Negated)
    order = an_order(root, template={"export": {"onnx": {}}}).model_copy(update={"final": True})

    answer = run_here(order, root)

    assert answer.export_failure is not None
    assert answer.export_failure.failure_class == "CheckpointInvalid"
    assert answer.export_failure.message.startswith(
        "export.onnx of stage small: the exported graph computes something else: 60 of 60 predictions"
    )
    assert "(accuracy 0." in answer.export_failure.message
    stored = root / f"store/stages/{order.digest}"
    assert answer.checkpoint.startswith(f"file://{stored}")
    assert (stored / "report.html").is_file()
    assert not (stored / "exports").exists()


@pytest.mark.models
def test_an_int8_model_that_is_worse_is_a_warning_with_both_metrics(root: Path, monkeypatch: pytest.MonkeyPatch):
    real = onnx_file.OnnxModel

    def model_of(path: Path, *, who: str) -> nn.Module:
        model = real(path, who=who)
        if path.name == "model.int8.onnx":
            plain = model.forward
            model.forward = lambda **inputs: _constant(plain(**inputs))  # type: ignore[method-assign]
        return model

    monkeypatch.setattr(graphs, "OnnxModel", model_of)

    answer = run_here(an_order(root, template=INT8, training={"epochs": 6}), root)

    (warning,) = [found for found in answer.warnings if "int8" in found]
    assert "int8 lowers the quality" in warning
    assert "accuracy 0.50 and " in warning
    assert record_of(root, answer.digest).warnings == [warning]


def _constant(answer: Any) -> Any:
    answer.logits = torch.zeros_like(answer.logits)
    return answer


@pytest.mark.models
def test_a_model_that_the_exporter_does_not_support_is_named(tmp_path: Path):
    class Branching(nn.Module):
        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
            return input_ids if input_ids.sum() > attention_mask.sum() else attention_mask

    inputs = {name: torch.ones(2, 3, dtype=torch.long) for name in ("input_ids", "attention_mask")}

    with pytest.raises(
        ExportInvalid, match=r"^export.onnx of stage x: the model cannot be exported to ONNX: .+; remove"
    ):
        onnx_file.write_onnx(Branching(), inputs, tmp_path / "model.onnx", who="export.onnx of stage x")


def test_an_export_of_a_stage_that_is_no_longer_committed_fails_and_trains_nothing(root: Path):
    order = an_order(root, template=INT8).model_copy(update={"export_only": True})

    with pytest.raises(
        CheckpointCorrupt, match=r"manifest.json is missing: stage small is no longer committed, and an"
    ):
        run_here(order, root)

    assert not (root / "store").exists() or not list((root / "store").rglob("*"))


@pytest.mark.models
def test_an_export_only_order_exports_what_is_committed(root: Path):
    before = run_here(an_order(root), root)
    order = an_order(root, template={"export": {"onnx": {}}}).model_copy(update={"export_only": True})

    answer = run_here(order, root, attempt="export")

    assert answer.checkpoint == before.checkpoint
    assert [export.format for export in answer.exports] == ["onnx"]


@pytest.mark.parametrize(
    "broken, sentence",
    [
        pytest.param(
            lambda path: onnx_file.quantize_int8(path, path.with_name("int8.onnx"), who="export.onnx of stage x"),
            "export.onnx of stage x: the weights cannot be quantized to int8: ",
            id="quantizer",
        ),
        pytest.param(
            lambda path: onnx_file.OnnxModel(path, who="export.onnx of stage x"),
            "export.onnx of stage x: ONNX Runtime cannot load model.onnx: ",
            id="runtime",
        ),
    ],
)
def test_errors_of_quantizer_and_runtime_name_the_export(broken: Any, sentence: str, tmp_path: Path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"no graph")

    with pytest.raises(ExportInvalid) as failure:
        broken(path)

    assert str(failure.value).startswith(sentence)
    assert str(failure.value).endswith("; remove export.onnx of this stage")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        # protobuf's, and safetensors' in a sentence of ours
        ExportInvalid(
            "export.onnx of stage x: the model cannot be exported to ONNX: Failed to serialize proto; remove"
        ),
        CheckpointInvalid(
            "the weights cannot be loaded: unable to mmap 100 bytes from file: Cannot allocate memory (12)"
        ),
    ],
)
def test_too_little_memory_is_named_whatever_runs_out_of_it(error: Exception):
    failure = export.failure_of("x", error)

    assert failure.failure_class == "OutOfMemory"
    assert failure.message == (
        "export.onnx of stage x: out of memory: raise resources.limits.memory of this stage, or remove its export.onnx"
    )


def test_predictions_are_compared_as_each_task_answers():
    one = np.array([[1.0, 2.0], [3.0, 1.0]], dtype=np.float32)
    other = one + np.array([[0.0, -1.5], [0.0, 0.0]], dtype=np.float32)

    assert difference("TextClassification", one, other).predictions == 1
    assert difference("MultiLabelClassification", one - 1.2, other - 1.2).predictions == 1
    assert difference("Regression", one[:, 0], other[:, 0]).predictions == 0
    # Log-probability of the token, and the id of the most probable one, which is no number to subtract.
    tokens = np.array([[-1.0, 5.0], [-2.0, 900.0]], dtype=np.float32)
    others = np.array([[-1.0, 6.0], [-2.00001, 900.0]], dtype=np.float32)
    assert difference("CausalLM", tokens, others).predictions == 1
    assert difference("CausalLM", tokens, others).is_within_tolerance
    assert not difference("CausalLM", tokens, tokens - [0.1, 0.0]).is_within_tolerance
    assert difference("TextClassification", one, other).largest == pytest.approx(1.5)
    assert not difference("TextClassification", one, other).is_within_tolerance
    assert difference("TextClassification", one, one + 1e-5).is_within_tolerance
    assert not difference("TextClassification", one, one * np.nan).is_within_tolerance


def test_a_metric_is_worse_if_a_user_should_know_it():
    cross_entropy, accuracy = TOKEN_CROSS_ENTROPY, Metric("accuracy", "accuracy")
    assert is_worse(cross_entropy, 4.389, 4.329)
    assert not is_worse(cross_entropy, 4.329, 4.347)
    assert not is_worse(cross_entropy, 4.349, 4.329), "less than a hundredth"
    assert is_worse(accuracy, 0.80, 0.81)
    assert not is_worse(accuracy, 0.81, 0.80)


@pytest.mark.models
def test_a_part_of_validation_is_measured_and_the_weights_leave_memory_before_they_are_quantized(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Words are the items of a row, so rows, items and outputs must stay together."""
    monkeypatch.setattr(export, "MOST_FLOPS", 5e6)
    real, seen = graphs.Graphs.quantize, []

    def quantize(made: graphs.Graphs, source: Path, path: Path) -> None:
        seen.append(made.loaded.is_weightless)
        real(made, source, path)

    monkeypatch.setattr(graphs.Graphs, "quantize", quantize)
    write_models(tmp_path)
    document = tagging_document(tmp_path)
    document["spec"]["teacher"]["export"] = {"onnx": {"quantize": "int8"}}

    answer = run_here(build_plan(parse_chain(document)).stages[0].work_order, tmp_path)

    assert answer.export_failure is None
    assert seen == [True]
    record = record_of(tmp_path, answer.digest)
    assert record.rows is not None
    assert 4 < record.rows < 24
    pytorch, plain, _ = record.formats
    assert plain.validation == pytorch.validation
    assert plain.different_predictions == 0
    assert pytorch.validation["entityF1"] > 0.9, "labels and outputs of the part belong together"


@pytest.mark.parametrize(
    ("numbers", "off", "is_good"),
    [
        pytest.param([0.001, 0.002, 0.003], 1e-4, False, id="small numbers: a tenth of the spread"),
        pytest.param([0.001, 0.002, 0.003], 1e-7, True, id="small numbers: rounding"),
        pytest.param([99_999.0, 100_000.0, 100_001.0], 1.0, False, id="a large mean: half of the spread"),
        pytest.param([99_999.0, 100_000.0, 100_001.0], 0.05, True, id="a large mean: float32 has no finer numbers"),
    ],
)
def test_the_tolerance_of_numbers_follows_their_spread(numbers: list[float], off: float, is_good: bool):
    reference = np.array(numbers, dtype=np.float32)
    assert difference("Regression", reference, reference + np.float32(off)).is_within_tolerance == is_good
