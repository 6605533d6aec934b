"""The termination message of a stage whose store has a long URI."""

from __future__ import annotations

from distillchain_api.wire.answer import TERMINATION_BYTES, Committed, parse_answer
from distillchain_api.wire.export import ExportSummary
from distillchain_api.wire.manifest import Metrics, ModelSummary
from distillchain_trainer.launch.termination import encode_answer

STAGE = f"s3://bucket/{'folder-' * 140}/stages/{'d' * 64}"


def a_model() -> ModelSummary:
    metrics = Metrics(validation={"accuracy": 0.9}, test={"accuracy": 0.88})
    return ModelSummary(parameters=4_400_000, size_bytes=17_600_000, metrics=metrics)


def test_exports_in_a_store_with_a_long_uri_leave_the_teacher_in_the_message():
    exports = [
        ExportSummary(
            format=kind,
            uri=f"{STAGE}/exports/a1/{name}",
            size_bytes=17_600_000,
            metric="0.9000",
            examples_per_second="100.0",
            pytorch_examples_per_second="90.0",
        )
        for kind, name in (("onnx", "model.onnx"), ("onnx-int8", "model.int8.onnx"))
    ]
    answer = Committed(
        stage="tiny",
        digest="d" * 64,
        attempt="a1",
        checkpoint=f"{STAGE}/attempts/a1/checkpoint",
        reused=False,
        pretrained=True,
        student=a_model(),
        teacher=a_model(),
        elapsed_s=1.0,
        examples_per_second=1.0,
        exports=exports,
        warnings=["a sentence " * 20],
    )
    assert len(answer.to_json().encode()) > TERMINATION_BYTES

    message = encode_answer(answer)

    assert len(message) <= TERMINATION_BYTES
    assert parse_answer(message.decode()) == answer
