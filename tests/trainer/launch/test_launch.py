"""A stage of several processes on one node: real launchers and ranks, without models."""

from __future__ import annotations

import json
import os
import signal
import time

import pytest

from distillchain_api.failures import FailureClass
from distillchain_api.wire.answer import Committed, Failed, Interrupted
from trainer.launching import Nodes, a_commit, several
from trainer.parts import an_order

pytestmark = pytest.mark.slow


def test_the_answer_and_the_progress_are_those_of_rank_0(nodes: Nodes):
    node = nodes.start(
        """
reporter.report("Train", rank, 10)
print("a library that prints")
""",
        variables={"RANK": "7", "MASTER_ADDR": "10.255.255.1"},
    )

    code, answer = node.ends()

    assert (code, type(answer)) == (0, Committed), node.log
    assert [line.step for line in node.progress] == [0]
    assert node.log.count("a library that prints") == 2
    assert list((node.folder / "work").iterdir()) == []


def test_ranks_get_the_variables_of_torch_and_share_folder_attempt_and_cpus(nodes: Nodes):
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "OMP_NUM_THREADS")
    node = nodes.start(
        f"""
values = [os.environ[name] for name in {names}]
(shared / f"seen-{{rank}}").write_text(json.dumps([values, attempt, str(folder), os.environ["MASTER_PORT"]]))
""",
        variables={"DISTILLCHAIN_ATTEMPT": "pod"},
    )

    assert node.ends()[0] == 0, node.log

    seen = [json.loads((node.shared / f"seen-{rank}").read_text()) for rank in (0, 1)]
    assert [values for values, *_ in seen] == [[str(rank), str(rank), "2", "2", "127.0.0.1", "1"] for rank in (0, 1)]
    assert seen[0][1:] == seen[1][1:]
    assert seen[0][1].startswith("pod-")


@pytest.mark.parametrize(
    "statement, code, failure_class, message",
    [
        pytest.param("raise errors.WorkOrderInvalid('x')", 64, FailureClass.WORK_ORDER_INVALID, "x", id="64"),
        pytest.param("raise errors.DataInvalid('x')", 65, FailureClass.DATA_INVALID, "x", id="65"),
        pytest.param("raise errors.CheckpointInvalid('x')", 66, FailureClass.CHECKPOINT_INVALID, "x", id="66"),
        pytest.param("raise errors.LabelMismatch('x')", 67, FailureClass.LABEL_MISMATCH, "x", id="67"),
        pytest.param("raise errors.GateNotMet('x')", 68, FailureClass.GATE_NOT_MET, "x", id="68"),
        pytest.param("raise store_errors.StorageDenied('x')", 69, FailureClass.STORAGE_DENIED, "x", id="69"),
        pytest.param("raise KeyError('x')", 70, FailureClass.CRASHED, "rank 1: KeyError: 'x'", id="70"),
        pytest.param("raise errors.OutOfMemory('x')", 71, FailureClass.OUT_OF_MEMORY, "rank 1: x", id="71"),
        pytest.param("os._exit(3)", 70, FailureClass.CRASHED, "rank 1: exited with code 3 and without an answer", id="exit"),
        pytest.param("os.kill(os.getpid(), signal.SIGKILL)", 70, FailureClass.CRASHED, "rank 1: killed by SIGKILL (the kernel does this when memory runs out)", id="killed"),
        pytest.param("os.kill(os.getpid(), signal.SIGSEGV)", 70, FailureClass.CRASHED, "rank 1: killed by SIGSEGV", id="segmentation fault"),
        pytest.param("print('  what():  Watchdog caught collective operation timeout: WorkNCCL(SeqNum=3, OpType=ALLREDUCE)', flush=True); os.abort()", 70, FailureClass.CRASHED, "rank 1: killed by SIGABRT: Watchdog caught collective operation timeout: WorkNCCL(SeqNum=3, OpType=ALLREDUCE)", id="NCCL's watchdog"),
    ],
)  # fmt: skip
def test_a_rank_that_fails_ends_the_stage_with_its_code_and_message(
    nodes: Nodes, statement: str, code: int, failure_class: FailureClass, message: str
):
    node = nodes.start(
        f"""
wait_for("started", 0, 1)
if rank == 1:
    {statement}
wait_for_stop(signals)
raise errors.LostPeers("rank 1 of 2 ended")
"""
    )

    ended, answer = node.ends()

    assert isinstance(answer, Failed), node.log
    assert (ended, answer.failure_class, answer.message) == (code, failure_class, message)


def test_a_failure_counts_and_not_that_another_rank_lost_this_one_before(nodes: Nodes):
    node = nodes.start(
        """
if rank == 0:
    wait_for("started", 1)
    raise errors.LostPeers("lost the other processes")
wait_for("lost", 9)
raise errors.DataInvalid("train.tsv is empty")
"""
    )
    node.until("cause=PeersLost")
    (node.shared / "lost-9").touch()

    code, answer = node.ends()

    assert isinstance(answer, Failed), node.log
    assert (code, answer.message) == (65, "train.tsv is empty")


def test_ranks_that_lose_each_other_without_a_failure_are_a_crash(nodes: Nodes):
    node = nodes.start("raise errors.LostPeers(f'{rank} waited in a sum')")

    code, answer = node.ends()

    assert isinstance(answer, Failed), node.log
    assert (code, answer.failure_class) == (70, FailureClass.CRASHED)
    assert "waited in a sum; no rank failed by itself" in answer.message


def test_a_rank_that_hangs_after_the_failure_of_another_shows_its_stack_and_is_killed(nodes: Nodes):
    node = nodes.start(
        """
if rank == 1:
    wait_for("started", 0, 1)
    raise errors.DataInvalid("x")
with signals.deferred():
    def hanging_collective():
        while True:
            time.sleep(1)
    hanging_collective()
""",
        settings="launcher.KILL_AFTER_S = 0.3",
    )

    code, answer = node.ends()

    assert (code, type(answer)) == (65, Failed), node.log
    assert "in hanging_collective" in node.log


def test_sigterm_reaches_every_rank_and_is_answered_with_75(nodes: Nodes):
    node = nodes.start(
        """
wait_for_stop(signals)
mark("stopped")
raise errors.StopRequested(40)
"""
    )
    node.until_marked("stoppable", 0, 1)

    node.stop()
    code, answer = node.ends()

    assert isinstance(answer, Interrupted), node.log
    assert (code, answer.step) == (75, 40)
    assert answer.message == ("interrupted; its state at step 40 is saved, and the next attempt continues from it")
    node.until_marked("stopped", 0, 1)


def test_a_stop_has_no_limit_because_a_large_state_takes_long_to_save(nodes: Nodes):
    node = nodes.start(
        """
wait_for_stop(signals)
if rank == 0:
    time.sleep(1)
    signals.saved_step = 7
raise errors.StopRequested
""",
        settings="launcher.KILL_AFTER_S = 0.1",
    )
    node.until_marked("stoppable", 0, 1)

    node.stop()
    code, answer = node.ends()

    assert isinstance(answer, Interrupted), node.log
    assert (code, answer.step) == (75, 7)


def test_a_failure_while_the_state_is_saved_is_reported(nodes: Nodes):
    node = nodes.start("wait_for_stop(signals)\nraise store_errors.StorageDenied('refused')")
    node.until_marked("stoppable", 0, 1)

    node.stop()
    code, answer = node.ends()

    assert (code, type(answer)) == (69, Failed), node.log


def test_a_stop_of_one_rank_stops_all(nodes: Nodes):
    node = nodes.start(
        """
(shared / f"pid-{rank}").write_text(str(os.getpid()))
wait_for_stop(signals)
raise errors.StopRequested(3)
"""
    )
    node.until_marked("stoppable", 0, 1)

    os.kill(int((node.shared / "pid-1").read_text()), signal.SIGTERM)

    assert node.ends()[0] == 75, node.log


@pytest.mark.parametrize("joins", [0, 1])
def test_a_stop_while_ranks_wait_for_each_other_ends_them(nodes: Nodes, joins: int):
    """The one that had come waited within torch for ten minutes, because the other one had stopped before it came."""
    node = nodes.start(
        f"""
if rank == {joins}:
    from distillchain_trainer.engine.ranks import world
    mark("joins")
    world.join_world(signals.deferred)
wait_for_stop(signals)
raise errors.StopRequested
"""
    )
    node.until_marked("joins", joins)
    time.sleep(0.5)  # so that it waits

    node.stop()

    assert node.ends()[0] == 75, node.log


def test_a_stage_that_is_committed_stays_so_when_another_rank_crashes_afterwards(nodes: Nodes):
    node = nodes.start(
        """
if rank == 1:
    with signals.deferred():
        wait_for("done", 0)
        raise KeyError("at the end")
mark("done")
"""
    )

    assert node.ends()[0] == 0, node.log


COMMITS = """
if rank == 0:
    on_committed(Committed.parse({committed!r}))
    mark("committed")
    {then}
wait_for_stop(signals)
raise errors.StopRequested(40)
"""


@pytest.mark.parametrize(
    "then, code",
    [
        pytest.param("os.kill(os.getpid(), signal.SIGKILL)", 70, id="killed"),
        pytest.param("signals.saved_step = 40", 75, id="stopped"),
    ],
)
def test_a_stage_that_is_committed_stays_so_when_its_export_ends_early(nodes: Nodes, then: str, code: int):
    committed = a_commit(several(an_order(nodes.root)))
    node = nodes.start(COMMITS.format(committed=committed.to_json(), then=then))

    node.until_marked("committed", 0)
    if code == 75:
        node.stop()

    assert node.ends() == (code, committed), node.log


def test_a_trace_is_asked_of_the_first_rank(nodes: Nodes):
    node = nodes.start(
        """
deadline = time.monotonic() + 30
while rank == 0 and not signals.take_trace_request():
    assert time.monotonic() < deadline
    time.sleep(0.01)
mark("traced")
wait_for("traced", 0)
(shared / f"trace-{rank}").write_text(str(rank == 0 or signals.take_trace_request()))
""",
    )
    node.until_marked("started", 0, 1)

    node.process.send_signal(signal.SIGUSR1)

    assert node.ends()[0] == 0, node.log
    assert [(node.shared / f"trace-{rank}").read_text() for rank in (0, 1)] == ["True", "False"]


def test_ranks_end_with_their_launcher(nodes: Nodes):
    node = nodes.start("(shared / f'pid-{rank}').write_text(str(os.getpid()))\nmark('waits')\ntime.sleep(600)")
    node.until_marked("waits", 0, 1)
    pids = [int((node.shared / f"pid-{rank}").read_text()) for rank in (0, 1)]

    node.kill()
    node.process.wait()

    for pid in pids:
        node.until_gone(pid)


def test_warnings_of_the_environment_reach_the_ranks_and_are_logged_once(nodes: Nodes):
    node = nodes.start(
        "warnings.add('found by every rank')\n(shared / f'warnings-{rank}').write_text(json.dumps(warnings.sentences))",
        variables={"NVIDIA_TF32_OVERRIDE": "1"},
    )

    assert node.ends()[0] == 0, node.log

    found = [json.loads((node.shared / f"warnings-{rank}").read_text()) for rank in (0, 1)]
    assert found[0] == found[1]
    assert [sentence.partition(" is ignored")[0] for sentence in found[0]] == [
        "environment variable NVIDIA_TF32_OVERRIDE",
        "found by every rank",
    ]
    for sentence in found[0]:
        assert node.log.count(sentence) == 1
    assert "found by every rank rank=0" in node.log
