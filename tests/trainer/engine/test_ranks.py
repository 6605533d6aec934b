"""A stage that several processes carry out: the result is that of one, and all of them end together."""

from __future__ import annotations

import signal
import socket
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distillchain_api.resource.training import Training
from distillchain_api.wire.work_order import WorkOrder
from distillchain_trainer.engine.ranks.joining import check_gpus, join
from distillchain_trainer.engine.ranks.world import World
from distillchain_trainer.engine.training.training_state import changed_processes
from distillchain_trainer.errors import PortTaken, WorkOrderInvalid
from trainer.parts import an_order, manifest_of, new_student, read_json, run_here, weights_of, write_data
from trainer.rank_parts import (
    NOISE,
    Attempt,
    Outcome,
    a_compiler_that_rank_1_lacks,
    a_stop_of_rank_1_as_it_measures_an_epoch,
    a_store_that_takes_logits_for_longer_than_a_collective_may_take,
    a_store_that_takes_no_state,
    a_student_that_only_rank_1_cannot_load,
    distance,
    short_memory,
    start_ranks,
    start_stage,
)

pytestmark = pytest.mark.models


def an_order_in(
    root: Path, store: str = "store", *, dropout: float = 0.0, pad_token_id: int = 0, **parts: Any
) -> WorkOrder:
    """A stage whose student has this dropout; `store` is the folder of its store."""
    student = new_student(root, dropout=dropout, hidden_size=8, pad_token_id=pad_token_id)
    return an_order(root, student=student, storage={"uri": f"file://{root}/{store}"}, **parts)


@pytest.mark.parametrize(
    "size, nodes, rows, batch_size, noise",
    [
        pytest.param(2, 1, 150, 16, 1e-5, id="a short last batch"),
        pytest.param(3, 3, 50, 16, 1e-5, id="a batch that does not divide, on three nodes"),
        pytest.param(3, 1, 11, 2, NOISE, id="a batch of fewer rows than ranks"),
    ],
)
def test_several_processes_give_the_weights_of_one(
    root: Path, size: int, nodes: int, rows: int, batch_size: int, noise: float
):
    write_data(root / "data", train=rows)
    training = {"batchSize": batch_size}
    alone = run_here(an_order_in(root, "alone", training=training), root)

    answers = start_stage(Attempt(an_order_in(root, training=training), "a"), root, size, nodes=nodes).answers()

    assert len({answer.to_json() for answer in answers}) == 1
    assert distance(answers[0], alone) < noise
    manifest = manifest_of(root, alone.digest)
    assert manifest.student.metrics == alone.student.metrics
    assert manifest.run.steps == 2 * -(-rows // batch_size)
    assert manifest.environment["processes"] == str(size)
    assert len(list(root.glob("store/logits/*/*"))) == 1, "rank 0 alone writes"


def test_a_stop_and_a_resume_in_the_same_shape_change_no_bit(root: Path):
    whole = start_stage(Attempt(an_order_in(root, "whole", dropout=0.2), "whole"), root, 2).answers()[0]
    order = an_order_in(root, dropout=0.2)

    stopped = start_stage(Attempt(order, "stopped", stop_after=(1, 12)), root, 2, nodes=2).wait()

    assert [outcome["error"] for outcome in stopped] == ["StopRequested"] * 2
    assert 0 < stopped[0]["step"] == stopped[1]["step"] < 20
    resumed = start_stage(Attempt(order, "resumed"), root, 2, nodes=2).answers()[0]
    assert manifest_of(root, order.digest).run.resumed
    assert weights_of(resumed) == weights_of(whole)


def test_another_number_of_processes_resumes(root: Path):
    order = an_order_in(root)
    alone = run_here(an_order_in(root, "alone"), root)
    (outcome, *_) = start_stage(Attempt(order, "stopped", stop_after=(0, 12)), root, 3).wait()
    assert outcome["step"] > 0

    answer = run_here(order, root, attempt="next")

    assert manifest_of(root, order.digest).run.resumed
    assert distance(answer, alone) < 1e-5
    assert (
        "parallelism: one process resumed from a state that 3 processes have saved: dropout draws other numbers from "
        "there on"
    ) in manifest_of(root, order.digest).warnings


@pytest.mark.parametrize(
    "size, saved_by, sentence",
    [
        (1, 1, ""),
        (2, 2, ""),
        (2, 1, "parallelism: 2 processes resumed from a state that one process has saved: dropout draws other "),
        (1, 0, "parallelism: one process resumed from a state without the random numbers of its processes: dropout "),
    ],
)
def test_a_state_of_other_processes_is_a_warning(tmp_path: Path, size: int, saved_by: int, sentence: str):
    for rank in range(saved_by):
        (tmp_path / f"random-{rank}.safetensors").touch()

    found = changed_processes(tmp_path, World(0, size))

    assert found.startswith(sentence)
    assert bool(found) == bool(sentence)


def test_sigterm_stops_all_ranks_at_the_same_step(root: Path):
    write_data(root / "data", train=6000)
    order = an_order_in(root, training={"epochs": 30, "batchSize": 8}, template={"saveInterval": "1s"})
    ranks = start_stage(Attempt(order, "a"), root, 2)
    states = f"store/stages/{order.digest}/resume/*/index.json"
    ranks.wait_until(lambda: bool(list(root.glob(states))))

    ranks.signal(signal.SIGTERM, 1)
    time.sleep(0.05)
    ranks.signal(signal.SIGTERM, 0)
    outcomes = ranks.wait()

    assert [outcome["error"] for outcome in outcomes] == ["StopRequested"] * 2
    saved = max(read_json(path)["step"] for path in root.glob(states))
    assert [outcome["step"] for outcome in outcomes] == [saved, saved]


def test_a_stop_of_one_rank_at_the_end_of_an_epoch_stops_all(root: Path):
    order = an_order_in(root, pad_token_id=1)  # unlike the teacher, so the student's validation rows are its own

    outcomes = start_stage(Attempt(order, "a", fault=a_stop_of_rank_1_as_it_measures_an_epoch), root, 2).wait()

    assert [outcome["error"] for outcome in outcomes] == ["StopRequested"] * 2
    (state,) = root.glob(f"store/stages/{order.digest}/resume/*/index.json")
    assert [outcome["step"] for outcome in outcomes] == [read_json(state)["step"]] * 2


def test_a_stop_of_another_rank_whose_state_cannot_be_saved_is_a_failure(root: Path):
    attempt = Attempt(an_order_in(root), "a", stop_after=(1, 12), fault=a_store_that_takes_no_state)

    outcomes = start_stage(attempt, root, 2).wait()

    assert [outcome["error"] for outcome in outcomes] == ["StorageUnavailable", "LostPeers"]
    assert [outcome["step"] for outcome in outcomes] == [0, 0]


@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_rank_ends_the_others_as_interrupted(root: Path, killed: int):
    write_data(root / "data", train=6000)
    order = an_order_in(root, training={"epochs": 30, "batchSize": 8}, template={"saveInterval": "1s"})
    ranks = start_stage(Attempt(order, "a"), root, 2)
    # The second state, so that the other rank knows of the first.
    ranks.wait_until(lambda: len(list(root.glob(f"store/stages/{order.digest}/resume/*/index.json"))) == 2)

    ranks.signal(signal.SIGKILL, killed)
    outcomes = ranks.wait()

    other = outcomes[1 - killed]
    assert outcomes[killed] == {}
    assert other["error"] == "LostPeers"
    assert other["message"].startswith(f"lost the other processes of the stage: rank {1 - killed} of 2, ")
    assert other["step"] > 0, "the step of the saved state"


def test_the_store_may_take_teacher_logits_for_longer_than_a_collective_may_take(root: Path):
    fault = a_store_that_takes_logits_for_longer_than_a_collective_may_take

    start_stage(Attempt(an_order_in(root), "a", fault=fault), root, 2).answers()


def test_memory_that_is_short_on_one_rank_makes_the_micro_batches_of_all_smaller(root: Path):
    alone = run_here(an_order_in(root, "alone"), root)
    order = an_order_in(root)

    answers = start_stage(Attempt(order, "a", fault=short_memory), root, 2).answers()

    assert distance(answers[0], alone) < 1e-5
    assert manifest_of(root, order.digest).run.micro_batch_size == 2


@pytest.mark.parametrize("size", [2, 3])
def test_a_mode_that_fails_or_is_unknown_on_one_rank_is_used_by_none(root: Path, size: int):
    alone = run_here(an_order_in(root, "alone"), root)
    order = an_order_in(root)

    answers = start_stage(Attempt(order, "a", fault=a_compiler_that_rank_1_lacks), root, size).answers()

    assert manifest_of(root, order.digest).run.mode == "eager"
    assert distance(answers[0], alone) < 1e-5


def test_an_error_of_one_rank_ends_all_at_once(root: Path):
    attempt = Attempt(an_order_in(root), "a", fault=a_student_that_only_rank_1_cannot_load)

    outcomes = start_stage(attempt, root, 3).wait()  # fails after 90 s, and a collective after ten minutes

    assert [outcome["error"] for outcome in outcomes] == ["LostPeers", "CheckpointInvalid", "LostPeers"]
    assert outcomes[0]["message"] == ("rank 1 of 3 ended: CheckpointInvalid: spec.stages[0].student.model: damaged")


def test_a_commit_that_is_there_is_adopted_by_all_ranks(root: Path):
    order = an_order_in(root)
    run_here(order, root)

    answers = start_stage(Attempt(order, "late"), root, 2).answers()

    assert [answer.reused for answer in answers] == [True, True]


def test_fewer_gpus_than_processes_are_refused():
    with pytest.raises(WorkOrderInvalid) as refused:
        check_gpus(8, found=1)

    assert str(refused.value) == (
        "parallelism.processesPerNode: got 8, but the pod has 1 GPU; expected one GPU for each process: lower "
        "processesPerNode, or raise the number of GPUs in resources"
    )


def _train_two_steps(_: Path, batches: list[list[int]]) -> Outcome:
    """Trains a linear layer, beside which there is a parameter that the loss does not reach."""
    from distillchain_trainer.engine.encoding.encoded import Encoded
    from distillchain_trainer.engine.ranks.world import join_world
    from distillchain_trainer.engine.training.optimizer import build_optimizer
    from distillchain_trainer.engine.training.step import EagerStep, Work
    from distillchain_trainer.engine.training.training_rows import TrainingRows

    class Student(torch.nn.Linear):
        def forward(self, input_ids: torch.Tensor, **_: Any) -> torch.Tensor:
            return super().forward(input_ids.float())

    world, cpu = join_world(), torch.device("cpu")
    with world.membership():
        student = Student(2, 1)
        for parameter in student.parameters():
            torch.nn.init.ones_(parameter)
        student.unreached = torch.nn.Parameter(torch.ones(4))
        rows = TrainingRows(
            Encoded.of([np.array([row, 1], dtype=np.int32) for row in range(4)], pad_id=0), torch.zeros(4), None, None
        )
        training = Training(learning_rate=0.1, weight_decay=0.1)
        optimizer = build_optimizer(student, training)
        step = EagerStep(Work(student, rows, cpu, lambda answer, _: answer[:, 0], training, optimizer, cpu, world), 4)
        for batch in batches:
            step.run(batch, stop=lambda: False)
    return {"unreached": student.unreached.tolist(), "weight": student.weight.tolist()}


def test_a_parameter_that_the_loss_does_not_reach_is_left_alone_as_by_one_process(tmp_path: Path):
    batches = [[0, 1], [2, 3]]

    alone = _train_two_steps(tmp_path, batches)
    outcomes = start_ranks(_train_two_steps, tmp_path, 3, batches, name="steps").wait()

    assert [outcome["unreached"] for outcome in outcomes] == [alone["unreached"]] * 3 == [[1.0] * 4] * 3
    for outcome in outcomes:  # one of them has no row
        assert np.allclose(outcome["weight"], alone["weight"], atol=1e-6)
        assert not np.allclose(outcome["weight"], 1.0, atol=0.1)


def _share_rows(_: Path, sizes: list[int]) -> Outcome:
    """Shares forward passes over so many rows each. Each row counts, so a row that is answered twice shows."""
    from distillchain_trainer.engine.encoding.encoded import Encoded
    from distillchain_trainer.engine.passes.shared_forward import all_outputs
    from distillchain_trainer.engine.ranks.world import join_world

    class Sums(torch.nn.Linear):
        def forward(self, input_ids: torch.Tensor, **_: Any) -> torch.Tensor:
            return input_ids.sum(dim=1, keepdim=True).float()

    world = join_world()
    found = []
    with world.membership():
        for size in sizes:
            ids = [np.full(1 + row % 3, row + 1, dtype=np.int32) for row in range(size)]
            encoded = Encoded.of(ids, pad_id=0)
            outputs, _ = all_outputs(
                Sums(1, 1),
                encoded,
                lambda answer, _: answer,
                precision="float32",
                on_batch=lambda *_: None,
                world=world,
            )
            found.append(outputs[:, 0].tolist())
    return {"found": found}


@pytest.mark.parametrize("size", [2, 3])
def test_every_row_is_answered_once_for_all_ranks(tmp_path: Path, size: int):
    sizes = list(range(1, 21))

    outcomes = start_ranks(_share_rows, tmp_path, size, sizes, name="rows").wait()

    expected = [[float((1 + row % 3) * (row + 1)) for row in range(rows)] for rows in sizes]
    assert [outcome["found"] for outcome in outcomes] == [expected] * size


@pytest.mark.parametrize("host", ["127.0.0.1", "group-0.group.team-a.svc"])
def test_a_port_that_is_taken_is_named(monkeypatch: pytest.MonkeyPatch, host: str):
    """It was reported as lost processes, or without a remedy."""
    with socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True) as other:
        port = other.getsockname()[1]
        for name, value in {"MASTER_ADDR": host, "MASTER_PORT": str(port), "LOCAL_WORLD_SIZE": "1"}.items():
            monkeypatch.setenv(name, value)

        with pytest.raises(PortTaken, match=rf"port {port} of this node cannot be opened .*Address already in use"):
            join(0, 2, 0)
