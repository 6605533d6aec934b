"""A stage on several nodes: two real launchers on this machine, each with its ranks, without models."""

from __future__ import annotations

import signal
import socket
from pathlib import Path

import pytest

from distillchain_api.wire.answer import Committed, Failed, Interrupted
from distillchain_api.wire.work_order import WorkOrder
from distillchain_trainer.launch.causes import Cause
from distillchain_trainer.launch.messages import Join, Report
from trainer.launching import Node, Nodes, several
from trainer.parts import an_order

pytestmark = pytest.mark.slow

QUICK = "member.RETRY_S, launcher.KILL_AFTER_S = 0.1, 0.5\n"
STOPPABLE = "wait_for_stop(signals)\nraise errors.StopRequested(40)"


@pytest.fixture
def order(tmp_path: Path) -> WorkOrder:
    return several(an_order(tmp_path), nodes=2, processes=1)


def start_both(nodes: Nodes, order: WorkOrder, body: str, settings: str = QUICK) -> tuple[Node, Node]:
    first = nodes.start(body, order=order, node=0, settings=settings)
    return first, nodes.start(body, order=order, node=1, settings=settings)


def start_training(nodes: Nodes, order: WorkOrder, body: str, settings: str = QUICK) -> tuple[Node, Node]:
    both = start_both(nodes, order, body, settings)
    both[0].until_marked("stoppable" if STOPPABLE in body else "started", 0, 1)
    return both


def say(nodes: Nodes, *lines: bytes) -> str:
    """Everything that node 0 answers to a stranger but heartbeats."""
    with socket.create_connection(("127.0.0.1", nodes.port), timeout=30) as connection:
        connection.sendall(b"".join(line + b"\n" for line in lines))
        answers = connection.makefile("rb").read()
    return "".join(line for line in answers.decode().splitlines(keepends=True) if "Alive" not in line)


def a_join(order: WorkOrder, **changed: str | int) -> bytes:
    join = Join(digest=order.digest, node=1, nodes=2, processes=1, attempt="stranger")
    return join.model_copy(update=changed).to_json().encode()


def test_both_nodes_answer_with_the_commit_of_rank_0_and_only_node_0_reports_progress(nodes: Nodes, order: WorkOrder):
    both = start_both(
        nodes,
        order,
        """
reporter.report("Train", rank, 10)
values = [os.environ[name] for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_PORT")]
(shared / f"seen-{rank}").write_text(" ".join([attempt, *values]))
if rank == 0:
    wait_for("started", 1)
""",
    )

    ends = [node.ends() for node in both]

    assert [(code, type(answer)) for code, answer in ends] == [(0, Committed)] * 2, both[0].log + both[1].log
    assert ends[0][1] == ends[1][1]
    assert [len(node.progress) for node in both] == [1, 0]
    seen = [(both[0].shared / f"seen-{rank}").read_text().split() for rank in (0, 1)]
    assert seen[0][0] == seen[1][0], "one attempt"
    assert [values[1:] for values in seen] == [[str(rank), "0", "2", "1", str(nodes.port + 1)] for rank in (0, 1)]


def test_a_node_waits_for_the_commit_although_its_own_ranks_have_finished(nodes: Nodes, order: WorkOrder):
    first, second = start_both(
        nodes,
        order,
        """
if rank == 0:
    wait_for("released", 9)
""",
    )
    second.until_marked("started", 1)
    second.until("ranks start")
    assert second.process.poll() is None

    (second.shared / "released-9").touch()

    assert [node.ends()[0] for node in (first, second)] == [0, 0], second.log


def test_no_rank_starts_before_all_nodes_have_joined(nodes: Nodes, order: WorkOrder):
    first = nodes.start("", order=order, node=0, settings=QUICK)
    first.until("waiting for nodes nodes=1 of=2")
    assert not (first.shared / "started-0").exists()

    second = nodes.start("", order=order, node=1, settings=QUICK)

    assert [node.ends()[0] for node in (first, second)] == [0, 0], first.log


def test_a_node_that_starts_first_waits_for_node_0(nodes: Nodes, order: WorkOrder):
    second = nodes.start("", order=order, node=1, settings=QUICK)
    second.until("waiting for node 0")

    first = nodes.start("", order=order, node=0, settings=QUICK)

    assert [node.ends()[0] for node in (first, second)] == [0, 0], second.log


@pytest.mark.parametrize("stopped", [0, 1])
def test_sigterm_to_one_pod_stops_and_saves_on_all(nodes: Nodes, order: WorkOrder, stopped: int):
    both = start_training(nodes, order, STOPPABLE)

    both[stopped].stop()

    for node in both:
        code, answer = node.ends()
        assert isinstance(answer, Interrupted), node.log
        assert (code, answer.step) == (75, 40)
        assert answer.message.startswith("interrupted; its state at step 40 is saved")


@pytest.mark.parametrize("waiting", [0, 1])
def test_sigterm_while_nodes_are_waited_for_ends_with_75(nodes: Nodes, order: WorkOrder, waiting: int):
    node = nodes.start("", order=order, node=waiting, settings=QUICK)
    node.until("waiting for node")

    node.stop()
    code, answer = node.ends()

    assert isinstance(answer, Interrupted), node.log
    assert (code, answer.step) == (75, 0)


@pytest.mark.parametrize("lost", [0, 1])
def test_a_node_whose_machine_fails_is_named_and_the_other_ends_with_75(nodes: Nodes, order: WorkOrder, lost: int):
    both = start_training(nodes, order, "signals.saved_step = 5\n" + STOPPABLE)

    both[lost].kill()
    code, answer = both[1 - lost].ends()

    assert isinstance(answer, Interrupted), both[1 - lost].log
    assert code == 75
    assert answer.message.startswith(f"node {lost}: node {lost} of 2 is lost: its connection ")


@pytest.mark.parametrize("silent", [0, 1])
def test_a_node_that_is_silent_is_lost(nodes: Nodes, order: WorkOrder, silent: int):
    both = start_training(nodes, order, STOPPABLE, QUICK + "connection.HEARTBEAT_S, connection.SILENCE_S = 0.1, 3.0\n")

    both[silent].process.send_signal(signal.SIGSTOP)
    code, answer = both[1 - silent].ends()

    assert isinstance(answer, Interrupted), both[1 - silent].log
    assert code == 75
    assert f"node {silent} of 2 is lost: nothing was heard from it for 3 s" in answer.message


def test_ranks_that_hang_after_a_node_was_lost_are_killed(nodes: Nodes, order: WorkOrder):
    first, second = start_training(nodes, order, "with signals.deferred():\n    time.sleep(600)")

    second.kill()

    assert first.ends()[0] == 75, first.log


@pytest.mark.parametrize("failing", [0, 1])
def test_a_failure_is_counted_on_its_own_node_and_the_other_names_it(nodes: Nodes, order: WorkOrder, failing: int):
    both = start_both(
        nodes,
        order,
        f"""
wait_for("started", 0, 1)
if rank == {failing}:
    time.sleep(0.2)
    raise KeyError("surprise")
raise errors.LostPeers("rank {failing} ended")
""",
    )

    code, answer = both[failing].ends()
    assert isinstance(answer, Failed), both[failing].log
    assert (code, answer.message) == (70, f"rank {failing}: KeyError: 'surprise'")
    code, other = both[1 - failing].ends()
    assert isinstance(other, Interrupted), both[1 - failing].log
    assert code == 75
    assert other.message.startswith(f"node {failing}: rank {failing}: KeyError: 'surprise'; no state of this attempt")


def test_a_network_between_ranks_that_fails_is_one_crash(nodes: Nodes, order: WorkOrder):
    """Without a limit to retries, a NetworkPolicy that blocks the ranks would restart the group for ever."""
    both = start_both(
        nodes,
        order,
        "wait_for('started', 0, 1)\nraise errors.LostPeers('no answer')",
        QUICK + "host.PEERS_LOST_S = 0.5\n",
    )

    ends = [node.ends() for node in both]

    assert sorted(code for code, _ in ends) == [70, 75], both[0].log
    (crash,) = (answer for _, answer in ends if isinstance(answer, Failed))
    assert "no rank failed by itself: one of them hung, or the network between them failed" in crash.message


def test_a_pod_that_was_replaced_restarts_the_group(nodes: Nodes, order: WorkOrder):
    first, second = start_training(nodes, order, STOPPABLE)

    assert '"forNow":true' in say(nodes, a_join(order))

    for node in (first, second):
        code, answer = node.ends()
        assert isinstance(answer, Interrupted), node.log
        assert code == 75
        assert "node 1 of 2 is lost: its pod was replaced" in answer.message


def test_a_pod_that_is_replaced_before_the_start_takes_the_place_of_the_old_one(nodes: Nodes, order: WorkOrder):
    first = nodes.start("", order=several(order, nodes=3, processes=1), node=0, settings=QUICK)
    old = nodes.start("", order=several(order, nodes=3, processes=1), node=1, settings=QUICK)
    first.until("waiting for nodes nodes=2 of=3")
    old.kill()

    others = [
        nodes.start("", order=several(order, nodes=3, processes=1), node=number, settings=QUICK) for number in (1, 2)
    ]

    assert [node.ends()[0] for node in (first, *others)] == [0, 0, 0], first.log


@pytest.mark.parametrize(
    "changed, why",
    [
        pytest.param({"digest": "0" * 64}, f"digest: got {'0' * 64}, expected ", id="another stage"),
        pytest.param({"nodes": 3}, "nodes: got 3, expected 2", id="another number of nodes"),
        pytest.param({"processes": 8}, "processes: got 8, expected 1", id="another number of processes"),
        pytest.param({"version": 1}, "version: got 1, expected 2", id="another release"),
        pytest.param({"node": 2}, "node: got 2, expected 1 to 1", id="another number"),
    ],
)  # fmt: skip
def test_a_pod_of_another_shape_is_refused_by_name(
    nodes: Nodes, order: WorkOrder, changed: dict[str, str | int], why: str
):
    first = nodes.start("", order=order, node=0, settings=QUICK)
    first.until("waiting for nodes")

    answer = say(nodes, a_join(order, **changed))

    assert f'"message":"{why}' in answer
    first.until("node refused")
    assert not (first.shared / "started-0").exists()


def test_a_node_that_is_refused_for_long_fails(nodes: Nodes, order: WorkOrder):
    nodes.start("", order=order, node=0, settings=QUICK)
    other = nodes.start(
        "", order=several(order, nodes=3, processes=1), node=1, settings=QUICK + "member.REFUSED_S = 0.3\n"
    )

    code, answer = other.ends()

    assert isinstance(answer, Failed), other.log
    assert code == 70
    assert answer.message == (
        f"node 0 at 127.0.0.1:{nodes.port} refuses node 1: nodes: got 3, expected 2; the pods of a stage must come from "
        "one Job"
    )


def test_a_stranger_cannot_stop_the_stage(nodes: Nodes, order: WorkOrder):
    first, second = start_training(nodes, order, "wait_for('released', 9)")
    stop = Report(cause=Cause(kind="Stopped", node=1)).to_json().encode()

    assert [say(nodes, line) for line in (stop, b"GET / HTTP/1.1", b"\xff" * 100_000)] == ["", "", ""]

    (first.shared / "released-9").touch()
    assert [node.ends()[0] for node in (first, second)] == [0, 0], first.log


@pytest.mark.parametrize(
    "variables, message",
    [
        pytest.param({"JOB_COMPLETION_INDEX": "2"}, "environment variable JOB_COMPLETION_INDEX: got '2', expected a number from 0 to 1, because parallelism.nodes is 2; the operator's Indexed Job sets it", id="number"),
        pytest.param({"DISTILLCHAIN_RENDEZVOUS": "host"}, "environment variable DISTILLCHAIN_RENDEZVOUS: got 'host', expected host:port of node 0, with a port from 1 to 65534", id="address"),
    ],
)  # fmt: skip
def test_a_wrong_variable_of_a_pod_is_refused(nodes: Nodes, order: WorkOrder, variables: dict[str, str], message: str):
    node = nodes.start("", order=order, variables=variables)

    code, answer = node.ends()

    assert isinstance(answer, Failed), node.log
    assert (code, answer.message) == (64, message)


@pytest.mark.parametrize("short", [0, 1])
def test_all_nodes_start_again_after_memory_was_short_on_one(nodes: Nodes, order: WorkOrder, short: int):
    body = f"""
(shared / f"attempt-{{rank}}-{{fitting_rows}}").write_text(attempt)
if fitting_rows is None:
    mark("wrote")
    if rank == {short}:
        wait_for("wrote", 0, 1)
        raise errors.MicroBatchTooLarge("too little memory", rows=8)
    time.sleep(600)
"""
    pods = [nodes.start(body, order=order, node=node) for node in (0, 1)]

    ends = [pod.ends() for pod in pods]

    assert [(code, type(answer)) for code, answer in ends] == [(0, Committed)] * 2, pods[0].log + pods[1].log
    first, again = (
        [(nodes.root / f"shared/attempt-{rank}-{rows}").read_text() for rank in (0, 1)] for rows in (None, 8)
    )
    assert first[0] == first[1]
    assert again == [f"{first[0]}-2"] * 2


def test_a_node_that_is_lost_while_all_start_again_ends_the_others(nodes: Nodes, order: WorkOrder):
    body = """
if fitting_rows is None and rank == 1:
    raise errors.MicroBatchTooLarge("too little memory", rows=8)
time.sleep(600)
"""
    pods = [nodes.start(body, order=order, node=node) for node in (0, 1)]
    pods[1].until("cause=MemoryShort")

    pods[1].kill()

    code, answer = pods[0].ends()
    assert (code, type(answer)) == (75, Interrupted), pods[0].log
