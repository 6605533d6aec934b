"""A model that does not fit into the memory of its processes is refused before it is built."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from distillchain_trainer.engine.ranks.world import World
from distillchain_trainer.errors import CheckpointInvalid
from distillchain_trainer.models import memory
from distillchain_trainer.models.memory import Processes
from trainer.checkpoint_parts import (
    build_student,
)
from trainer.parts import save_bert

pytestmark = pytest.mark.models


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    return save_bert(tmp_path / "teacher")


def test_an_architecture_that_does_not_fit_into_memory_is_refused_before_it_is_built(teacher: Path):
    limit = memory.memory_limit_bytes()
    assert limit is not None

    with pytest.raises(CheckpointInvalid) as refused:
        build_student("bert", teacher, hidden_size=1 << 20, num_attention_heads=1, intermediate_size=1 << 20)

    assert str(refused.value) == (
        "spec.stages[0].student.architecture: it has 80,265,058,713,602 parameters, which need 1,196,042.6 GiB (weights, "
        f"gradients and moments of AdamW in float32), and the memory limit is {limit / 2**30:,.1f} GiB; make the "
        "architecture smaller or raise the memory limit of the pod"
    )


def a_million_weights() -> torch.nn.Module:
    return torch.nn.Linear(1000, 1000, bias=False)


def test_each_process_of_a_node_needs_the_memory_of_the_model(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(memory, "memory_limit_bytes", lambda: 40_000_000)  # 2.5 times what one training needs
    memory.check_memory(a_million_weights, field="f", processes=Processes())
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    four = Processes.in_world(World(rank=5, size=8, local_rank=1), sharded=False)

    with pytest.raises(CheckpointInvalid) as refused:
        memory.check_memory(a_million_weights, field="f", processes=four)

    assert "in float32, in each of 4 processes), and" in str(refused.value)
    assert "make the architecture smaller, lower processesPerNode or raise" in str(refused.value)


def test_processes_that_split_a_model_need_its_memory_once_and_its_weights_on_the_first_node(
    monkeypatch: pytest.MonkeyPatch,
):
    """All of that is 16 bytes a weight, and the weights alone are 4."""
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    first, second = (Processes.in_world(World(rank=rank, size=8, local_rank=1), sharded=True) for rank in (1, 5))
    monkeypatch.setattr(memory, "memory_limit_bytes", lambda: 11_999_999)

    memory.check_memory(a_million_weights, field="f", processes=second)
    with pytest.raises(CheckpointInvalid) as refused:
        memory.check_memory(a_million_weights, field="f", processes=first)

    assert (
        "(4 of 8 parts of weights, gradients and moments of AdamW and all weights once, in float32), and the memory "
        "limit is 0.0 GiB; make the architecture smaller or raise"
    ) in str(refused.value)
    # With GPUs, the parts are on them.
    assert [node.needed_bytes(10**6, on_cpu=False) for node in (first, second)] == [4 * 10**6, 0]


def test_the_memory_limit_of_a_container_counts(tmp_path: Path):
    machine = memory.memory_limit_bytes(())
    (tmp_path / "v2").write_text("1048576\n")
    (tmp_path / "none").write_text("max\n")

    assert memory.memory_limit_bytes((tmp_path / "v2",)) == 1 << 20
    assert memory.memory_limit_bytes((tmp_path / "none", tmp_path / "absent")) == machine
