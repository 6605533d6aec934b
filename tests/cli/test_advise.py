"""`distillchain advise` on a chain file and its store."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from cli.parts import distillchain_here, write_chain
from distillchain_api.graph import build_plan
from distillchain_cli.arguments.chain_files import read_chain
from report.plans import commit_stages

PARAMETERS = {"teacher": 22_700_000, "mini": 11_000_000, "tiny": 4_400_000}


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    """chain.yaml with mini and tiny, and short.yaml without mini; both are committed with three seeds in one store."""
    path = write_chain(tmp_path)
    document = yaml.safe_load(path.read_text())
    document["spec"]["stages"] = document["spec"]["stages"][1:]
    (tmp_path / "short.yaml").write_text(yaml.safe_dump(document))
    for file, best in (("chain.yaml", 0.85), ("short.yaml", 0.88)):
        for seed in (42, 43, 44):
            own = read_chain(str(tmp_path / file), overrides=[f"spec.stages[tiny].training.seed={seed}"])
            accuracies = {"teacher": 0.93, "mini": 0.91, "tiny": best + (seed - 42) / 1000}
            commit_stages(tmp_path / "store", build_plan(own).stages, accuracies, parameters=PARAMETERS)
    return path


def test_the_table(chain: Path):
    done = distillchain_here("advise", "chain.yaml", "-o", "wide", cwd=chain.parent)

    assert (done.returncode, done.stderr) == (0, "")
    sentence, _, head, mini, tiny, _, routes, short = done.stdout.splitlines()
    assert sentence.startswith("Drop mini: teacher -> tiny is better (difference -3.0 points, 95 % interval -")
    assert head.split() == ["STEP", "accuracy", "LOSS", "95%", "KEPT", "SMALLER", "HOURS", "GPU-HOURS"]
    assert mini.split()[:5] == ["teacher", "->", "mini", "0.910", "+0.020"]
    assert tiny.split()[:5] == ["mini", "->", "tiny", "0.850", "+0.060"]
    assert routes.split()[:3] == ["OTHER", "ROUTE", "accuracy"]
    assert short.split()[:6] == ["teacher", "->", "tiny", "0.881", "3", "-0.030"]
    assert short.endswith("worse")

    narrow = distillchain_here("advise", "chain.yaml", cwd=chain.parent).stdout.splitlines()
    assert narrow[6].split()[-4:] == ["95%", "DETECTABLE", "CHAIN", "IS"]
    assert narrow[7].startswith("teacher -> tiny  ")


def test_the_document_and_the_option_for_the_smallest_gain(chain: Path):
    done = distillchain_here("advise", "short.yaml", "--smallest-gain", "0.5", "-o", "json", cwd=chain.parent)

    advice = json.loads(done.stdout)
    # The longer chain did not pay, so nothing is worth adding.
    assert (advice["action"], advice["smallestGain"]) == ("Keep", 0.5)
    assert [route["outcome"] for route in advice["otherRoutes"]] == ["AsGood"]
    assert advice["otherRoutes"][0]["added"] == ["mini"]


def test_an_empty_store(chain: Path):
    done = distillchain_here("advise", "chain.yaml", "--storage", "file://./other", cwd=chain.parent)

    assert done.returncode == 1
    assert "chain.yaml: no committed step in file://" in done.stderr


def test_a_store_whose_only_step_is_damaged(tmp_path: Path):
    path = write_chain(tmp_path, stages=["mini"])
    plan = build_plan(read_chain(str(path)))
    commit_stages(tmp_path / "store", plan.stages, {"teacher": 0.93, "mini": 0.91}, parameters=PARAMETERS)
    (manifest,) = (tmp_path / "store").rglob("manifest.json")
    manifest.write_text("junk")

    done = distillchain_here("advise", "chain.yaml", cwd=tmp_path)

    assert done.returncode == 1
    assert f"run the chain first; not used: file://{manifest} cannot be read (not JSON: " in done.stderr
