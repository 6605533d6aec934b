"""How many processes train a stage: from its parallelism and the GPUs of its container."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from chain_builders import a_document, a_plan
from distillchain_api.faults import BadDocument
from distillchain_api.graph import build_plan
from distillchain_api.plan_check import check_plan
from distillchain_api.resource.parallelism import ResolvedParallelism
from distillchain_api.resource.spec import parse_chain
from distillchain_api.wire.work_order import WorkOrder
from distillchain_api.yaml_text import load_yaml

EIGHT_GPUS = {"limits": {"nvidia.com/gpu": "8", "memory": "64Gi"}}


def a_trainer(resources: dict[str, Any]) -> dict[str, Any]:
    return {"spec": {"containers": [{"name": "sidecar"}, {"name": "trainer", "resources": resources}]}}


@pytest.mark.parametrize(
    "template, nodes, processes",
    [
        pytest.param({}, 1, 1, id="nothing"),
        pytest.param({"resources": {"limits": {"cpu": 8}}}, 1, 1, id="no GPU"),
        pytest.param({"resources": EIGHT_GPUS}, 1, 8, id="GPUs"),
        pytest.param({"resources": {"limits": {"amd.com/gpu": 2}}}, 1, 2, id="GPUs of another vendor"),
        pytest.param({"pod": a_trainer(EIGHT_GPUS)}, 1, 8, id="GPUs of the pod's container trainer"),
        pytest.param({"resources": {"limits": {"cpu": 1}}, "pod": a_trainer(EIGHT_GPUS)}, 1, 1, id="resources win"),
        pytest.param({"resources": EIGHT_GPUS, "parallelism": {"processesPerNode": 4}}, 1, 4, id="stated"),
        pytest.param({"resources": EIGHT_GPUS, "parallelism": {"nodes": 3}}, 3, 8, id="nodes"),
    ],
)
def test_a_stage_has_a_process_for_each_gpu_unless_the_spec_says_otherwise(
    template: dict[str, Any], nodes: int, processes: int
):
    order = a_plan(template=template).stages[0].work_order
    assert (order.parallelism.nodes, order.parallelism.processes_per_node) == (nodes, processes)
    assert WorkOrder.parse(order.to_json()) == order
    # An order for one process is the same as before this field existed, and so is the name of its Job.
    assert ("parallelism" in order.to_document()) == (order.parallelism != ResolvedParallelism())


def test_a_stages_parallelism_replaces_the_templates_as_a_whole():
    document = a_document(template={"parallelism": {"nodes": 2, "processesPerNode": 4, "sharding": "Full"}})
    document["spec"]["stages"][1]["parallelism"] = {"nodes": 3}
    first, second = (stage.work_order.parallelism for stage in build_plan(parse_chain(document)).stages)
    assert (first.processes, first.sharding) == (8, "Full")
    assert (second.processes, second.sharding) == (3, "None")


def test_more_processes_than_gpus_and_sharding_by_one_process_are_refused():
    document = a_document(template={"resources": EIGHT_GPUS, "parallelism": {"processesPerNode": 9}})
    document["spec"]["stages"][1] |= {"parallelism": {"sharding": "Full"}, "resources": {"limits": {"cpu": 1}}}
    with pytest.raises(BadDocument) as refused:
        check_plan(build_plan(parse_chain(document)))
    assert str(refused.value).splitlines() == [
        'spec.stages[1].parallelism.sharding: got "Full", expected None for stage tiny, which has one process; sharding '
        "divides a model among several processes: set nodes or processesPerNode",
        "spec.template.parallelism.processesPerNode: got 9, expected at most 8, the GPUs of a pod of stage mini; each "
        "process needs a GPU of its own: lower it, or ask for more GPUs in resources",
    ]


def test_more_processes_than_rows_of_a_batch_or_without_any_gpu_are_accepted():
    check_plan(a_plan(template={"parallelism": {"processesPerNode": 4}, "training": {"batchSize": 2}}))


def test_the_example_runs_a_large_student_on_16_gpus_and_a_small_one_on_one(repository: Path):
    path = repository / "examples" / "gpus" / "chain.yaml"
    plan = build_plan(parse_chain(load_yaml(path.read_text(), source=path.name)))
    check_plan(plan)
    assert [stage.work_order.parallelism.processes for stage in plan.stages] == [16, 1]
