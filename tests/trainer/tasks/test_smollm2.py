"""A real language model: the chain of examples/llm/small.yaml runs to its report and is exported to ONNX."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from distillchain_api.graph import build_plan
from distillchain_api.resource.spec import parse_chain
from distillchain_api.wire.export import ExportRecord
from distillchain_api.yaml_text import load_yaml
from smollm2.model import ensure_smollm2
from smollm2.texts import HELD_OUT, SENTENCES
from trainer.parts import manifest_of
from trainer.tasks.test_language_chains import nats_in_plain_transformers

pytestmark = pytest.mark.models


def test_smollm2_teaches_every_third_of_its_layers(tmp_path: Path):
    document = load_yaml((SENTENCES.parent / "small.yaml").read_text(), source="small.yaml")
    spec: dict[str, Any] = document["spec"]
    spec["task"]["dataset"]["uri"] = f"file://{SENTENCES}"
    spec["storage"]["uri"] = f"file://{tmp_path}/store"
    spec["teacher"]["model"] = f"file://{ensure_smollm2()}"
    spec["template"]["export"] = {"onnx": {"quantize": "int8"}}
    (tmp_path / "chain.yaml").write_text(yaml.safe_dump(document))

    for command in ("validate", "run", "report"):
        more = ["--to", "report.html"] if command == "report" else []
        done = subprocess.run(
            [sys.executable, "-m", "distillchain_cli", command, "chain.yaml", *more],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=500,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    (stage,) = build_plan(parse_chain(document)).stages
    manifest = manifest_of(tmp_path, stage.digest)
    assert manifest.student.parameters == 63_713_088  # of 134,515,008: 28 million are the embeddings
    assert manifest.student.doubt is None
    measured = manifest.student.metrics.validation["tokenCrossEntropy"]
    assert measured == pytest.approx(nats_in_plain_transformers(manifest.checkpoint, HELD_OUT), rel=1e-5)
    record = ExportRecord.parse((tmp_path / f"store/stages/{stage.digest}/exports/onnx-int8.json").read_text())
    plain, int8 = (found.validation["tokenCrossEntropy"] for found in record.formats[1:])
    assert record.formats[1].different_predictions == 0
    assert plain == pytest.approx(measured, rel=1e-5)
    assert int8 == pytest.approx(measured, rel=0.01)
    page = (tmp_path / "report.html").read_text()
    assert "Rows that third predicts worse than the teacher" in page
    assert "paired permutation test" in page
