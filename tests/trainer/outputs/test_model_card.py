"""The model card beside a committed checkpoint: valid metadata, lineage, numbers of the manifest, and code that runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from distillchain_api.wire.answer import Committed
from distillchain_api.wire.manifest import Manifest
from distillchain_trainer.model_card.facts import CardFacts
from distillchain_trainer.model_card.markdown import render_card
from distillchain_trainer.models.licenses import stated_license
from trainer.parts import SMALL_BERT, an_order, manifest_of, run_here, save_bert

TINY = {key: value for key, value in SMALL_BERT.items() if key != "max_position_embeddings"}
HASH = {"modelType": "bert-hash", "config": {**TINY, "projections": 4, "max_position_embeddings": 32}}


def run_block(card: str, folder: Path) -> str:
    """Runs the example of a card in the folder of the checkpoint. Returns: what it prints."""
    found = re.search(r"```python\n(.*?)```", card, re.DOTALL)
    assert found
    code = found[1] + "\nassert not [name for name in sys.modules if name.startswith('distillchain')]\n"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}"], cwd=folder, env=environment, text=True, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.models
def test_the_card_of_a_second_stage_states_lineage_metrics_and_licenses(root: Path):
    (root / "teacher/README.md").write_text("---\nlicense: apache-2.0\n---\n# A teacher\n")
    save_bert(root / "encoder", labels=None, seed=5)
    (root / "encoder/README.md").write_text("---\nlicense: mit\n---\n")
    student = {"model": f"file://{root}/encoder"}
    hashed = {"architecture": HASH, "tokenizer": f"file://{root}/teacher"}
    stages = [{"name": "one", "student": student, "training": {"epochs": 6}}, {"name": "two", "student": hashed}]
    first = run_here(an_order(root, stages=stages), root)
    second = run_here(an_order(root, stages=stages, stage=1), root, attempt="two")

    one, two = (_card_of(answer) for answer in (first, second))

    assert one.data.license == "mit"
    assert one.data.pipeline_tag == "text-classification"
    assert "| root teacher | apache-2.0 |" in one.content
    assert two.data.license is None, "new weights have no start"
    assert "| root teacher | apache-2.0 |" in two.content
    manifests = [manifest_of(root, answer.digest) for answer in (first, second)]
    assert manifests[0].licenses == {"teacher": "apache-2.0", "start": "mit"}
    assert manifests[1].teacher is not None
    lineage = two.content.partition("## Lineage")[2].partition("## Data")[0]
    digests = re.findall(r"[0-9a-f]{64} \|", lineage)
    assert [found[:64] for found in digests if found[:64] in (first.digest, second.digest)] == [
        first.digest,
        second.digest,
    ]
    for result in two.data.eval_results or []:
        assert result.metric_value == manifests[1].student.metrics.validation[str(result.metric_name)]
    assert f"work-{manifests[1].attempt}" not in two.content, "folders of the machine"
    label = re.search(r"'label': '(\w+)'", run_block(str(two), Path(second.checkpoint.removeprefix("file://"))))
    assert label
    assert label[1] in ("negative", "positive")


def _card_of(answer: Committed) -> ModelCard:
    return ModelCard.load(Path(answer.checkpoint.removeprefix("file://")) / "README.md")


def a_manifest(**parts: Any) -> Manifest:
    """A committed student of a hub chain."""
    model = {
        "source": "hf://org/teacher@main",
        "revision": "a" * 40,
        "parameters": 1000,
        "sizeBytes": 4000,
        "metrics": {"validation": {"accuracy": 0.9, "macroF1": 0.8}},
    }
    document = {
        "digest": "d" * 64,
        "chain": "ml/relay",
        "stage": "tiny",
        "attempt": "a1",
        "checkpoint": "s3://models/x",
        "files": [],
        "teacher": model,
        "student": model | {"source": "s3://models/x", "digest": "d" * 64},
        "pretrained": True,
        "start": "hf://org/start@main (aaaa)",
        "dataRevision": "bbbb",
        "data": {"train": {"rows": 67349, "sha256": "1" * 64}, "validation": {"rows": 872, "sha256": "2" * 64}},
        "recipe": {
            "task": {
                "type": "TextClassification",
                "dataset": {"uri": "hf://nyu-mll/glue@main", "config": "sst2"},
                "labels": ["no", "yes"],
                "maxLength": 64,
            },
            "student": {"model": "hf://org/start@main"},
            "training": {"epochs": 3},
        },
        "run": {
            "startedAt": "2026-01-01T12:00:00Z",
            "elapsedS": 1,
            "modelS": 1,
            "examplesPerSecond": 1,
            "steps": 1,
            "finalLoss": 0.1,
            "logitsReused": False,
            "resumed": False,
        },
        "environment": {"distillchain": "0.1.0", "device": "cpu (2 threads)"},
        "committedAt": "2026-01-01T13:00:00Z",
        **parts,
    }
    return Manifest.parse(document)


def test_a_chain_of_the_hub_names_base_model_and_data_as_the_hub_does():
    from distillchain_report.model import Estimate

    estimates = {"validation": {"accuracy": Estimate(value=0.9, low=0.88, high=0.92), "macroF1": Estimate(value=0.8)}}
    card = ModelCard(render_card(CardFacts(a_manifest(), estimates=estimates)))

    assert card.data.base_model == "org/start"
    assert card.data.datasets == ["nyu-mll/glue"]
    assert card.data.metrics == ["accuracy", "f1"]
    assert card.data.model_name == "relay-tiny"
    first, _ = card.data.eval_results or []
    assert (first.dataset_type, first.dataset_config, first.dataset_split) == ("nyu-mll/glue", "sst2", "validation")
    assert "| validation | accuracy | 0.9000 | 0.8800 to 0.9200 | 0.9000 |" in card.content
    assert "| train | 67,349 |" in card.content
    assert "| root teacher | unknown |" in card.content


def test_an_error_is_written_in_its_own_unit_however_small_or_large():
    from distillchain_report.model import Estimate

    metrics = {"validation": {"mae": 7.00139e-07, "mse": 1.2e12, "pearson": 0.95}}
    model = a_manifest().student.model_dump(mode="json", by_alias=True) | {"metrics": metrics}
    task = {"type": "Regression", "dataset": {"uri": "s3://d/x"}, "metric": "mae"}
    manifest = a_manifest(teacher=model, student=model, recipe=a_manifest().recipe | {"task": task})
    estimates = {"mae": Estimate(value=7.00139e-07, low=6.1e-07, high=7.95e-07), "mse": Estimate(value=1.2e12)}

    card = render_card(CardFacts(manifest, estimates={"validation": estimates}))

    assert "| validation | mae | 7.00139e-07 | 6.1e-07 to 7.95e-07 | 7.00139e-07 |" in card
    assert "| validation | mse | 1200000000000 |" in card


def test_text_of_the_user_stays_text_in_the_card():
    hostile = "a|b\n# not a title <script>alert(1)</script> ---"
    student = a_manifest().student.model_copy(update={"doubt": hostile})
    recipe = a_manifest().recipe | {
        "task": {"type": "Other", "dataset": {"uri": "s3://d/x"}, "labels": [hostile, "```"]}
    }
    manifest = a_manifest(warnings=[hostile]).model_copy(update={"student": student, "recipe": recipe})

    card = ModelCard(render_card(CardFacts(manifest)))

    titles = [line for line in card.content.splitlines() if line.startswith("#")]
    assert titles[0] == "# ml/relay, stage tiny"
    assert all(title.startswith("## ") for title in titles[1:])
    outside = [line for line in card.content.splitlines() if not line.startswith("    ")]
    assert not [line for line in outside if "<script>" in line]
    block = card.content.partition("## Recipe\n\n")[2].partition("\n\nEnvironment")[0]
    assert yaml.safe_load(block) == recipe


@pytest.mark.parametrize(
    "card, want",
    [
        pytest.param("---\nlicense: apache-2.0\n---\n", "apache-2.0", id="identifier"),
        pytest.param("---\nlicense: other\nlicense_name: llama3.1\n---\n", "llama3.1", id="named"),
        pytest.param("---\nlicense: other\n---\n", "other", id="without a name"),
        pytest.param("---\nlicense: [mit, apache-2.0]\n---\n", "mit, apache-2.0", id="several"),
        pytest.param("# A model\nlicense: mit\n", "", id="no front matter"),
        pytest.param("---\nlicense: [\n---\n", "", id="no YAML"),
        pytest.param("---\nlicense: 3\n---\n", "", id="no text"),
        pytest.param("---\n- license\n---\n", "", id="a list"),
    ],
)
def test_the_license_of_a_start_is_read_from_its_card(tmp_path: Path, card: str, want: str):
    (tmp_path / "README.md").write_text(card)

    assert stated_license(tmp_path) == want
