"""`distillchain compare`: models of several chains side by side."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from cli.committed import write_store
from cli.parts import distillchain_here, write_chain
from distillchain_api.graph import build_plan
from distillchain_cli.arguments.chain_files import read_chain


@pytest.fixture
def chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """chain.yaml with two committed stages."""
    path = write_chain(tmp_path)
    write_store(tmp_path / "store", build_plan(read_chain(str(path))), committed=2, monkeypatch=monkeypatch)
    return path


def predictions(folder: Path, stage: str, file: str = "predictions-validation.jsonl") -> np.ndarray:
    """Whether each row is right, read without our own reader."""
    (path,) = (path for path in folder.rglob(file) if stage in str(path))
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return np.array([row["label"] == row["predicted"] for row in rows])


def test_two_stages_of_one_chain(chain: Path):
    done = distillchain_here(
        "compare", "chain.yaml:mini", "chain.yaml", "--price-per-gpu-hour", "2", "-o", "json", cwd=chain.parent
    )

    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    mini, tiny = found["models"]
    stages = build_plan(read_chain(str(chain))).stages
    right = [predictions(chain.parent / "store", stage.digest) for stage in stages]
    change = right[1].astype(float) - right[0]
    error = change.std(ddof=1) / np.sqrt(len(change))
    assert "difference" not in mini
    assert tiny["difference"]["value"] == pytest.approx(change.mean())
    assert tiny["difference"]["low"] == pytest.approx(change.mean() - 1.963 * error, abs=1e-5)
    assert tiny["difference"]["high"] == pytest.approx(change.mean() + 1.963 * error, abs=1e-5)
    # To reach tiny, mini had to be trained too.
    assert tiny["gpuHours"] == pytest.approx(mini["gpuHours"] * 1.5, rel=0.7)
    assert tiny["gpuHours"] > mini["gpuHours"]
    assert tiny["cost"] == pytest.approx(2 * tiny["gpuHours"])
    assert {"field": "stages", "values": ["teacher -> mini", "teacher -> mini -> tiny"]} in found["recipe"]


def test_the_table_and_the_page(chain: Path):
    table = distillchain_here("compare", "chain.yaml:mini", "chain.yaml:tiny", "-o", "wide", cwd=chain.parent).stdout
    page = distillchain_here(
        "compare", "chain.yaml:mini", "chain.yaml:tiny", "-o", "html", "--to", "c.html", cwd=chain.parent
    )

    head, first, second = table.splitlines()[:3]
    assert head.split()[:4] == ["MODEL", "accuracy", "95%", "DIFFERENCE"]
    assert first.split()[:2] == ["chain.yaml:mini", "0.900"]
    assert second.split()[:2] == ["chain.yaml:tiny", "0.850"]
    assert "-0.050" in second
    assert page.stderr.endswith("comparison: c.html\n")
    html = (chain.parent / "c.html").read_text()
    assert "<script" not in html
    assert "-0.050" in html


def test_a_comparison_does_not_replace_a_chain_file(chain: Path):
    before = chain.read_bytes()

    done = distillchain_here("compare", "chain.yaml:mini", "chain.yaml:tiny", "--to", "chain.yaml", cwd=chain.parent)

    assert (done.returncode, done.stderr) == (
        2,
        "--to: chain.yaml is the chain file, which would be lost; name another file\n",
    )
    assert chain.read_bytes() == before


def test_a_table_has_room_for_the_names_in_100_columns(chain: Path):
    chain.rename(chain.parent / "chain-with-a-name.yaml")
    labels = [f"chain-with-a-name.yaml:{stage}" for stage in ("mini", "tiny")]
    table = distillchain_here("compare", *labels, "--price-per-gpu-hour", "2.5", cwd=chain.parent).stdout

    quality, cost, _ = table.split("\n\n")
    assert quality.splitlines()[0].split() == ["MODEL", "accuracy", "95%", "DIFFERENCE", "95%", "P"]
    assert cost.splitlines()[0].split()[-3:] == ["HOURS", "GPU-HOURS", "COST"]
    for part in (quality, cost):
        assert [line.split()[0] for line in part.splitlines()[1:]] == labels
    assert max(map(len, table.splitlines())) <= 100


def change_manifest(chain: Path, stage: str, change: Callable[[dict[str, Any]], None]) -> None:
    for path in (chain.parent / "store").rglob("manifest.json"):
        document = json.loads(path.read_text())
        if document["stage"] == stage:
            change(document)
            path.write_text(json.dumps(document))


def test_latencies_and_the_devices_on_which_they_were_measured(chain: Path):
    def compared(form: str) -> str:
        done = distillchain_here("compare", "chain.yaml:mini", "chain.yaml:tiny", "-o", form, cwd=chain.parent)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "device" not in compared("table")
    for stage, device, latency in (("mini", "NVIDIA H100", 1.5), ("tiny", "cpu (2 threads)", 20.25)):
        change_manifest(chain, stage, lambda found, device=device: found["environment"].update(device=device))
        change_manifest(chain, stage, lambda found, latency=latency: found["student"].update(latencyP50Ms=latency))

    head, mini, tiny, note = compared("wide").splitlines()[:4]
    want = "Speed and latency were not measured on the same device: chain.yaml:mini on NVIDIA H100"
    assert "  LATENCY" in head
    assert "  1.50 ms  " in mini
    assert "  20.2 ms  " in tiny
    assert note.startswith(want)
    assert want in compared("html")
    models = json.loads(compared("json"))["models"]
    assert [(model["device"], model["latencyP50Ms"]) for model in models] == [
        ("NVIDIA H100", 1.5),
        ("cpu (2 threads)", 20.25),
    ]


def test_models_on_other_rows_are_shown_and_not_compared(chain: Path):
    change_manifest(chain, "tiny", lambda found: found["data"]["validation"].update(sha256="f" * 64))

    done = distillchain_here("compare", "chain.yaml:mini", "chain.yaml:tiny", cwd=chain.parent)

    assert done.returncode == 0
    assert (
        "chain.yaml:tiny: no difference: it was measured on other validation rows than chain.yaml:mini" in done.stdout
    )


def test_a_metric_that_is_not_the_one_of_the_first_model_is_named_beside_its_value(chain: Path):
    change_manifest(chain, "tiny", lambda found: found["recipe"]["task"].update(metric="macroF1"))

    def compared(form: str) -> str:
        return distillchain_here("compare", "chain.yaml:mini", "chain.yaml:tiny", "-o", form, cwd=chain.parent).stdout

    head, mini, tiny = compared("wide").splitlines()[:3]
    assert head.split()[:2] == ["MODEL", "accuracy"]
    assert mini.split()[1] == "0.900"
    assert tiny.split()[1] == "macroF1"
    assert '<span class="range">macro F1</span>' in compared("html")
    other = json.loads(compared("json"))["models"][1]
    assert other["otherMetric"]["name"] == "macroF1"
    assert other["notCompared"] == "its metric is macroF1, and chain.yaml:mini has accuracy"


def test_a_stage_that_is_not_committed(chain: Path):
    document = yaml.safe_load(chain.read_text())
    document["spec"]["stages"][1]["training"] = {"epochs": 9}
    (chain.parent / "other.yaml").write_text(yaml.safe_dump(document))

    whole = distillchain_here("compare", "chain.yaml", "other.yaml", "-o", "json", cwd=chain.parent)
    stage = distillchain_here("compare", "chain.yaml", "other.yaml:tiny", cwd=chain.parent)

    # The last committed stage stands for a chain that has not ended.
    assert [model["stage"] for model in json.loads(whole.stdout)["models"]] == ["tiny", "mini"]
    assert [model["label"] for model in json.loads(whole.stdout)["models"]] == ["chain.yaml", "other.yaml:mini"]
    assert whole.stderr == "other.yaml: tiny is not committed; comparing mini, the last committed stage\n"
    assert stage.returncode == 1
    assert f"other.yaml:tiny: stage tiny is not committed in file://{chain.parent}/store" in stage.stderr


def test_a_last_stage_that_is_damaged_is_not_silently_replaced_by_the_one_before(chain: Path):
    digest = build_plan(read_chain(str(chain))).stages[1].digest
    manifest = chain.parent / "store" / "stages" / digest / "manifest.json"
    manifest.write_text("junk")

    done = distillchain_here("compare", "chain.yaml", "chain.yaml:mini", "-o", "wide", cwd=chain.parent)

    assert done.stderr.startswith(f"chain.yaml: file://{manifest} cannot be read (not JSON: ")
    assert done.stderr.endswith("; comparing mini, the last committed stage\n")
    assert [line.split()[0] for line in done.stdout.splitlines()[1:3]] == ["chain.yaml:mini"] * 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["chain.yaml"], "got 1 model, expected at least two"),
        (["chain.yaml", "chain.yaml:nano"], "got stage nano, expected mini or tiny"),
        (["chain.yaml", "none.yaml"], "none.yaml: there is no such file"),
    ],
)
def test_bad_input(chain: Path, arguments: list[str], message: str):
    done = distillchain_here("compare", *arguments, cwd=chain.parent)

    assert done.returncode == 2
    assert message in done.stderr
