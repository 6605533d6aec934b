"""Real stages in several processes: real launchers, real ranks, real models. Each ending, and what the next attempt does."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from cluster.ports import free_rendezvous
from distillchain_api.wire.answer import Committed, Failed, Interrupted
from distillchain_api.wire.work_order import WorkOrder
from trainer.launching import Node, Nodes, several
from trainer.parts import an_order, manifest_of, weights_of, write_data

pytestmark = pytest.mark.models


def start_pods(nodes: Nodes, order: WorkOrder) -> list[Node]:
    """Two pods on this machine."""
    nodes.port = free_rendezvous()
    return [nodes.start_stage(several(order, nodes=2, processes=1), node=node) for node in (0, 1)]


def until_step(node: Node, step: int) -> None:
    """Waits until rank 0 has trained so many steps."""

    def steps() -> list[int]:
        return [line.step for line in node.progress if line.phase == "Train"]

    node.until_true(lambda: max(steps(), default=0) >= step, f"step {step}")


def pid_of_rank(node: Node, rank: int) -> int:
    """By the variables of the launcher's children."""
    launcher = node.process.pid
    for child in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
        if f"\0RANK={rank}\0".encode() in Path(f"/proc/{child}/environ").read_bytes():
            return int(child)
    raise AssertionError(f"no rank {rank}")


def test_a_stage_that_is_interrupted_in_every_way_has_the_weights_of_one_that_is_not(nodes: Nodes, root: Path):
    write_data(root / "data", train=800)
    order = an_order(root, training={"epochs": 8, "batchSize": 16}, template={"saveInterval": "1s"})
    elsewhere = order.storage.model_copy(update={"uri": f"file://{root}/elsewhere"})
    code, whole = nodes.start_stage(several(order).model_copy(update={"storage": elsewhere})).ends()
    assert isinstance(whole, Committed), whole
    assert code == 0

    # One of two pods is evicted: both save at the same step.
    pods = start_pods(nodes, order)
    until_step(pods[0], 40)
    pods[1].stop()
    ends = [pod.ends() for pod in pods]
    assert [code for code, _ in ends] == [75, 75], pods[0].log + pods[1].log
    stopped_at = {answer.step for _, answer in ends if isinstance(answer, Interrupted)}
    assert len(stopped_at) == 1
    step = stopped_at.pop()
    assert step >= 40

    # The machine of one pod fails.
    pods = start_pods(nodes, order)
    until_step(pods[0], step + 80)
    pods[1].kill()
    code, answer = pods[0].ends()
    assert isinstance(answer, Interrupted), pods[0].log
    assert code == 75
    assert answer.message.startswith("node 1: node 1 of 2 is lost: its connection ")
    assert answer.step >= step

    # A rank is killed for memory.
    pod = nodes.start_stage(several(order))
    until_step(pod, step + 160)
    os.kill(pid_of_rank(pod, 1), signal.SIGKILL)
    code, answer = pod.ends()
    assert isinstance(answer, Failed), pod.log
    assert (code, answer.message) == (70, "rank 1: killed by SIGKILL (the kernel does this when memory runs out)")

    pod = nodes.start_stage(several(order))
    code, answer = pod.ends()
    assert isinstance(answer, Committed), pod.log
    assert code == 0
    assert manifest_of(root, order.digest).run.resumed
    assert weights_of(answer) == weights_of(whole)


def test_an_input_that_is_wrong_ends_all_pods_and_is_reported_once(nodes: Nodes, root: Path):
    (root / "data/train.tsv").unlink()

    pods = start_pods(nodes, an_order(root))

    ends = [pod.ends() for pod in pods]
    assert sorted(code for code, _ in ends) == [65, 75], pods[0].log + pods[1].log
    (failed,) = (answer for _, answer in ends if isinstance(answer, Failed))
    (other,) = (answer for _, answer in ends if isinstance(answer, Interrupted))
    assert "train.tsv" in failed.message
    assert failed.message in other.message
