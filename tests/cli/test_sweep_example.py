"""examples/sweep: run on made-up sentences, and planned as it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from cli.parts import distillchain

SWEEP = Path(__file__).resolve().parents[2] / "examples/sweep"
CHAINS = ("no-step", "one-step", "two-steps")
ONE_THREAD = {"OMP_NUM_THREADS": "1"}  # other tests run on the same two cores

pytestmark = pytest.mark.xdist_group("cli-models")


def run_sweep(root: Path, change: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Runs the three chains of the example after a change of each spec. Returns: the advice on the middle one."""
    for name in CHAINS:
        document = yaml.safe_load((SWEEP / f"{name}.yaml").read_text())
        document["spec"]["storage"] = {"uri": "file://./store"}
        change(document["spec"])
        (root / f"{name}.yaml").write_text(yaml.safe_dump(document))
        done = distillchain("run", f"{name}.yaml", cwd=root, **ONE_THREAD)
        assert done.returncode == 0, done.stdout + done.stderr
    compared = distillchain("compare", *(f"{name}.yaml" for name in CHAINS), "-o", "json", cwd=root)
    found = json.loads(compared.stdout)
    assert [model["stage"] for model in found["models"]] == ["femto"] * 3
    taught = ["teacher -> femto", "teacher -> tiny -> femto", "teacher -> tiny -> nano -> femto"]
    assert {"field": "stages", "values": taught} in found["recipe"]
    advice = distillchain("advise", "one-step.yaml", "-o", "json", cwd=root)
    assert advice.returncode == 0, advice.stderr
    advised: dict[str, Any] = json.loads(advice.stdout)
    return advised


def check(root: Path, advice: dict[str, Any], *, fine_tuned: int) -> None:
    """Checks that the chains have shared what they can, and that the advice knows all of them."""
    manifests = [json.loads(path.read_text()) for path in root.glob("store/stages/*/manifest.json")]
    # Six steps, of which tiny is in two chains.
    assert sorted(manifest["stage"] for manifest in manifests if manifest.get("teacher")) == [
        "femto",
        "femto",
        "femto",
        "nano",
        "tiny",
    ]
    assert len(manifests) == 5 + fine_tuned
    # The root teacher answered once, for tiny and the femto that it teaches itself; so did tiny.
    assert len(list(root.glob("store/logits/*"))) == 3
    assert advice["action"] == "Run"
    routes = {tuple(route["stages"]): route["outcome"] for route in advice["otherRoutes"]}
    assert routes == {("teacher", "femto"): "Undecided", ("teacher", "tiny", "nano", "femto"): "Undecided"}


@pytest.mark.models
def test_the_chains_share_their_stages_on_made_up_sentences(tmp_path: Path):
    from trainer.parts import SMALL_BERT, save_bert, write_data

    write_data(tmp_path / "data", train=320, validation=60, test=40)
    save_bert(tmp_path / "start", labels=None)

    def change(spec: dict[str, Any]) -> None:
        spec["task"] |= {"maxLength": 16}
        spec["task"]["dataset"]["uri"] = "file://./data"
        spec["teacher"] = {"model": "file://./start", "fineTune": {"epochs": 4}}
        spec["template"]["training"] = {"epochs": 6, "batchSize": 16, "learningRate": 0.01}
        for stage in spec["stages"]:
            config = {**SMALL_BERT, "hidden_size": {"tiny": 32, "nano": 16, "femto": 8}[stage["name"]]}
            stage["student"] = {"architecture": {"modelType": "bert", "config": config}, "tokenizer": "file://./start"}
            stage.pop("training")

    check(tmp_path, run_sweep(tmp_path, change), fine_tuned=1)


@pytest.mark.slow
def test_the_chains_as_they_are_would_train_five_students():
    plans = [json.loads(distillchain("plan", f"{name}.yaml", "-o", "json", cwd=SWEEP).stdout) for name in CHAINS]
    stages = {stage["digest"]: stage["name"] for plan in plans for stage in plan["stages"]}
    assert sorted(stages.values()) == ["femto", "femto", "femto", "nano", "tiny"]
