"""A real language model: SmolLM2-135M-Instruct teaches a third of its layers on short real sentences."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from distillchain_api.graph import build_plan
from distillchain_api.resource.spec import parse_chain
from smollm2.model import ensure_smollm2
from smollm2.texts import HELD_OUT, TRAIN, as_text, write_jsonl
from trainer.language_parts import a_chain_document, a_task_document
from trainer.parts import manifest_of
from trainer.test_language_chains import nats_in_plain_transformers

pytestmark = pytest.mark.models


def test_smollm2_teaches_every_third_of_its_layers(tmp_path: Path):
    write_jsonl(tmp_path / "data/train.jsonl", [as_text(sentence) for sentence in TRAIN])
    write_jsonl(tmp_path / "data/dev.jsonl", [as_text(sentence) for sentence in HELD_OUT])
    document = a_chain_document(
        tmp_path,
        task=a_task_document(tmp_path / "data"),
        # Perplexity 148: it was never trained on such short texts without context.
        teacher={"model": f"file://{ensure_smollm2()}", "gate": {"maxMetric": 5.0}},
        template={"training": {"epochs": 6, "batchSize": 8, "learningRate": 0.001, "warmupRatio": 0.1}},
        stages=[{"name": "third", "student": {"fromTeacher": {"layers": 10}}, "gate": {"maxMetric": 7.5}}],
    )
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
    page = (tmp_path / "report.html").read_text()
    assert "Rows that third predicts worse than the teacher" in page
    assert "paired permutation test" in page
