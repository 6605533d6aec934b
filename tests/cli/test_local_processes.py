"""How many processes `distillchain run` starts for a stage, and whose log `distillchain logs` shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from chain_builders import a_document, a_job, a_plan, a_pod
from distillchain_cli.local.local_processes import count_gpus, processes_here
from distillchain_cli.status.logs import LogSelection, _pods

EIGHT = {"resources": {"limits": {"nvidia.com/gpu": 8}}}


@pytest.mark.parametrize(
    "template, gpus, want",
    [
        pytest.param({}, 4, 1, id="one"),
        pytest.param(EIGHT, 0, 1, id="GPUs, on a laptop"),
        pytest.param(EIGHT, 2, 2, id="more GPUs than here"),
        pytest.param(EIGHT | {"parallelism": {"processesPerNode": 4, "nodes": 3}}, 8, 4, id="one of three nodes"),
        pytest.param({"parallelism": {"processesPerNode": 2}}, 0, 2, id="on CPUs, as stated"),
    ],
)
def test_a_stage_runs_on_this_machine_alone_with_the_gpus_that_it_has(template: dict[str, Any], gpus: int, want: int):
    here = processes_here(a_plan(template=template).stages[0], gpus=gpus)
    assert (here.nodes, here.processes) == (1, want)


def test_one_process_shards_nothing():
    stage = a_plan(template={"parallelism": {"nodes": 4, "sharding": "Full"}}).stages[0]
    assert processes_here(stage, gpus=0).sharding == "None"


@pytest.mark.parametrize(
    "visible, want", [(None, 2), ("", 0), ("0", 1), ("3,1", 2), ("-1", 0), ("0,-1,1", 1), ("GPU-8932f937", 1)]
)
def test_the_gpus_are_those_that_cuda_would_use(tmp_path: Path, visible: str | None, want: int):
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert count_gpus(environment, tmp_path) == want


def test_logs_are_those_of_node_0():
    plan = a_plan(template={"parallelism": {"nodes": 2}, "image": "x"})
    job = a_job(plan, "mini")
    pods = [a_pod(job, node=1), a_pod(job, node=0)]
    found = _pods(pods, a_document(), LogSelection())
    assert [pod.name for pod in found] == [pods[1]["metadata"]["name"]]
