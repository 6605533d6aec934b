"""A container that asks for a GPU does not train on the CPU unnoticed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from distillchain_api.wire.answer import Failed
from distillchain_trainer.engine.device.precision import best_device
from distillchain_trainer.engine.ranks.joining import check_gpus
from distillchain_trainer.engine.training.loop import fits_beside_training
from distillchain_trainer.errors import NoGpu, WorkOrderInvalid
from distillchain_trainer.gpus import check_gpus_are_seen
from trainer.parts import an_order, answer_in, start_process

pytestmark = pytest.mark.models


@pytest.mark.parametrize("gpus, what", [("1", "1 GPU"), ("2", "2 GPUs")])
def test_a_stage_with_a_gpu_that_torch_does_not_see_fails_with_the_reason(root: Path, gpus: str, what: str):
    # On a machine with a GPU, torch sees none of it then.
    process = start_process(an_order(root), root, DISTILLCHAIN_GPUS=gpus, CUDA_VISIBLE_DEVICES="")
    _, stderr = process.communicate(timeout=60)

    answer = answer_in(root)
    assert process.returncode == 70, stderr
    assert isinstance(answer, Failed)
    assert answer.failure_class == "Crashed"
    assert answer.message.startswith(f"the container requests {what}, but torch sees none (torch ")
    assert "no reason is known" not in answer.message
    assert "DISTILLCHAIN_ALLOW_CPU=1" in answer.message
    assert not (root / "store/logits").exists(), "the teacher was not asked on the CPU"


@pytest.mark.parametrize(
    "variables",
    [{}, {"DISTILLCHAIN_GPUS": ""}, {"DISTILLCHAIN_GPUS": "1", "DISTILLCHAIN_ALLOW_CPU": "1"}],
    ids=json.dumps,
)
def test_a_container_without_gpus_and_one_that_may_use_the_cpu_train_on_it(
    variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    check_gpus_are_seen()


def test_a_part_of_the_gpus_is_a_fault_of_the_node_and_too_many_processes_one_of_the_spec(
    monkeypatch: pytest.MonkeyPatch,
):
    with pytest.raises(WorkOrderInvalid, match="processesPerNode: got 8, but the pod has 7 GPUs"):
        check_gpus(8, found=7)
    monkeypatch.setenv("DISTILLCHAIN_GPUS", "8")
    with pytest.raises(NoGpu, match=r"^the container requests 8 GPUs, but torch sees 7;"):
        check_gpus(8, found=7)


@pytest.mark.parametrize("value", ["true", "yes"])
def test_a_value_that_means_nothing_is_refused(value: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DISTILLCHAIN_ALLOW_CPU", value)

    with pytest.raises(WorkOrderInvalid, match=f"DISTILLCHAIN_ALLOW_CPU: got '{value}', expected 0 or 1"):
        check_gpus_are_seen()


def test_a_process_names_its_gpu_by_number_so_that_tensors_on_it_are_not_copied_there(monkeypatch: pytest.MonkeyPatch):
    """torch takes `cuda` and `cuda:1` for two devices, and a tensor is always on one with a number."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)

    assert best_device() == torch.device("cuda:1")


def test_training_rows_fit_into_the_memory_that_a_freed_teacher_has_left_to_torch(monkeypatch: pytest.MonkeyPatch):
    """On the host they would rule out captured steps."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (100, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 900)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 500)

    assert fits_beside_training(99, torch.device("cuda:0"))
    assert not fits_beside_training(100, torch.device("cuda:0"))
