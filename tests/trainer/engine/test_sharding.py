"""A student that is split over several processes: the result and the states are those of one process."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from distillchain_api.wire.answer import Committed
from distillchain_api.wire.work_order import WorkOrder
from distillchain_trainer.engine.device.precision import autocast
from distillchain_trainer.engine.device.recast import recast_linear_layers
from distillchain_trainer.engine.device.sharding import shard
from distillchain_trainer.engine.passes import shared_forward
from distillchain_trainer.engine.ranks.world import ALONE
from distillchain_trainer.engine.training.optimizer import build_optimizer
from distillchain_trainer.engine.training.sharded_step import ShardedStep
from distillchain_trainer.engine.training.step import EagerStep, Work
from distillchain_trainer.errors import CheckpointInvalid, StopRequested
from trainer.launching import Nodes
from trainer.loop_parts import a_student, random_rows, recipe, row_losses
from trainer.loop_parts import distance as distance_of_models
from trainer.parts import StopAfter, an_order, manifest_of, new_student, read_json, run_here, weights_of, write_data
from trainer.rank_parts import (
    Attempt,
    a_device_that_counts_weights,
    distance,
    no_memory_for_a_split_teacher,
    short_memory,
    start_stage,
)

pytestmark = pytest.mark.models

TESTS = Path(__file__).parents[2]


def an_order_in(root: Path, store: str = "store", *, dropout: float = 0.0, **parts: Any) -> WorkOrder:
    """A sharded stage whose student has two layers and this dropout."""
    student = new_student(root, dropout=dropout, hidden_size=8, num_hidden_layers=2)
    return an_order(
        root,
        student=student,
        storage={"uri": f"file://{root}/{store}"},
        template={"parallelism": {"processesPerNode": 2, "sharding": "Full"}, "microBatchSize": 4},
        **parts,
    )


@pytest.mark.parametrize(
    "size, rows, batch_size",
    [
        pytest.param(2, 150, 16, id="a short last batch"),
        pytest.param(3, 11, 2, id="a batch of fewer rows than ranks"),
    ],
)
def test_a_sharded_student_is_that_of_one_process(root: Path, size: int, rows: int, batch_size: int):
    write_data(root / "data", train=rows)
    training = {"batchSize": batch_size, "maxGradNorm": 0.1}
    alone = run_here(an_order_in(root, "alone", training=training), root)

    answers = start_stage(Attempt(an_order_in(root, training=training), "a"), root, size).answers()

    assert distance(answers[0], alone) < 1e-5
    assert answers[0].student.metrics == alone.student.metrics
    assert answers[0].teacher == answers[1].teacher
    assert answers[0].teacher is not None
    assert alone.teacher is not None
    assert answers[0].teacher.metrics == alone.teacher.metrics, "the teacher is split too"
    assert answers[0].teacher.parameters == alone.teacher.parameters


@pytest.mark.parametrize("selection", ["Last", "Best"])
def test_no_device_ever_holds_more_than_its_part_of_the_student_and_the_teacher(root: Path, selection: str):
    training = {"selection": selection}
    alone = run_here(an_order_in(root, "alone", training=training), root)
    (root / "seen").mkdir()
    fault = functools.partial(a_device_that_counts_weights, seen=root / "seen")

    answers = start_stage(Attempt(an_order_in(root, training=training), "a", fault=fault), root, 2).answers()

    assert distance(answers[0], alone) < 1e-5
    assert answers[0].teacher is not None
    largest = max(answers[0].student.parameters, answers[0].teacher.parameters)
    for rank in (0, 1):
        seen = json.loads((root / "seen" / f"seen-{rank}.json").read_text())
        assert seen["moved"] == 0
        assert 0 < seen["trained"] <= 0.6 * answers[0].student.parameters, "a first dimension that is odd is not halved"
        assert 0 < seen["measured"] <= 0.6 * largest


def test_memory_that_is_short_for_one_row_of_a_split_student_names_what_helps(root: Path):
    order = an_order_in(root).model_copy(update={"micro_batch_size": 1})
    attempt = Attempt(order, "a", fault=functools.partial(short_memory, most=0))

    outcomes = start_stage(attempt, root, 2).wait()

    assert [outcome["error"] for outcome in outcomes] == ["LostPeers", "OutOfMemory"]
    assert outcomes[1]["message"] == (
        "the GPU has too little memory to train on one row; lower spec.task.maxLength, split the student over more GPUs "
        "(parallelism) or use larger ones"
    )


def test_after_memory_was_short_all_ranks_train_again_with_half_of_the_micro_batch(nodes: Nodes, root: Path):
    want = start_stage(
        Attempt(an_order_in(root, "elsewhere").model_copy(update={"micro_batch_size": 2}), "a"), root, 2
    ).answers()[0]
    order = an_order_in(root)
    node = nodes.start(
        f"""
sys.path.insert(0, {str(TESTS)!r})
from trainer.rank_parts import short_memory
short_memory(rank)
return real_stage(
    order, attempt=attempt, folder=folder, reporter=reporter, signals=signals, warnings=warnings,
    fitting_rows=fitting_rows
)
""",
        order=order,
    )

    code, answer = node.ends()

    assert isinstance(answer, Committed), node.log
    assert (code, answer.digest) == (0, order.digest)
    assert weights_of(answer) == weights_of(want)
    assert manifest_of(root, order.digest).run.micro_batch_size == 2
    assert (
        "rank 1: the GPU has too little memory to train on 4 rows at a time; all processes have started again with "
        "microBatchSize 2; set it in the chain to avoid the restart"
    ) in answer.warnings


def test_memory_that_is_short_for_a_split_teacher_names_what_helps(root: Path):
    attempt = Attempt(an_order_in(root), "a", fault=no_memory_for_a_split_teacher)

    outcomes = start_stage(attempt, root, 2).wait()

    assert [outcome["error"] for outcome in outcomes] == ["LostPeers", "OutOfMemory"]
    message = outcomes[1]["message"]
    assert message.startswith("the GPU has too little memory for a pass of the split model over ")
    assert message.endswith("split it over more GPUs (parallelism), use larger ones or lower spec.task.maxLength")
    assert "microBatchSize" not in message


class _Casts(TorchDispatchMode):
    """The elements of weights in bfloat16 that are in memory."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self._shapes = {weight.shape for weight in model.parameters() if weight.ndim == 2}
        self._found: list[tuple[StorageWeakRef, int]] = []
        self.most = 0

    @property
    def now(self) -> int:
        return sum(elements for storage, elements in self._found if not storage.expired())

    def __torch_dispatch__(self, call: Any, _: Any, arguments: Any = (), named: Any = None) -> Any:
        found = call(*arguments, **(named or {}))
        if call is torch.ops.aten._to_copy.default and found.dtype == torch.bfloat16 and found.shape in self._shapes:
            self._found.append((StorageWeakRef(found.untyped_storage()), found.numel()))
            self.most = max(self.most, self.now)
        return found


def test_a_pass_of_a_split_model_has_one_weight_in_bfloat16_at_a_time():
    """Autocast kept all of them: two bytes for each parameter of a model that does not fit, on every GPU."""
    model: Any = a_student()
    model.reshard = lambda: None
    encoded = random_rows(9).encoded
    largest = max(weight.numel() for weight in model.bert.encoder.parameters())

    with _Casts(model) as casts, autocast(torch.device("cpu"), "bfloat16"):
        rows = np.arange(len(encoded))
        passes = shared_forward._in_step(ALONE, model, encoded, lambda answer, _: answer.logits, rows, "bfloat16")
        assert [len(found.rows) for found in passes] == [9]
        left = casts.now

    assert (casts.most, left) == (largest, 0)


def test_a_step_of_a_split_model_has_one_weight_in_bfloat16_at_a_time_and_computes_the_same():
    """Autograd kept all of them for the backward pass."""
    rows, training = random_rows(8), recipe(precision="bfloat16")
    split, whole = a_student(), a_student()
    recast_linear_layers(split)
    most = []
    for model, step in ((split, ShardedStep), (whole, EagerStep)):
        optimizer, cpu = build_optimizer(model, training), torch.device("cpu")
        work = Work(model, rows, cpu, row_losses, training, optimizer, cpu, sharded=model is split)
        with _Casts(model) as casts:
            step(work, 4).run(list(range(8)), stop=lambda: False)
        most.append(casts.most)

    largest = max(weight.numel() for weight in split.bert.encoder.parameters())
    assert most[0] == largest < most[1]
    assert distance_of_models(split, whole) == 0


@pytest.mark.parametrize("shared", ["query", "query.weight"])
def test_a_model_whose_layers_share_a_weight_is_refused(shared: str):
    model = a_student()
    first, second = (layer.attention.self for layer in model.bert.encoder.layer)
    place, _, name = shared.rpartition(".")
    setattr(second.get_submodule(place), name, getattr(first.get_submodule(place), name))

    with pytest.raises(CheckpointInvalid) as failure:
        shard(model, ALONE, device=torch.device("cpu"))

    assert str(failure.value) == (
        'parallelism.sharding: got "Full", expected None for this bert: bert.encoder.layer.0.attention.self.query.weight '
        "and bert.encoder.layer.1.attention.self.query.weight are one weight, which cannot be split layer by layer; remove "
        "it, or use another model"
    )


def test_a_sharded_training_is_resumed_bit_by_bit(root: Path):
    whole = start_stage(Attempt(an_order_in(root, "whole", dropout=0.2), "whole"), root, 2).answers()[0]
    order = an_order_in(root, dropout=0.2)

    stopped = start_stage(Attempt(order, "stopped", stop_after=(1, 30)), root, 2).wait()

    assert [outcome["error"] for outcome in stopped] == ["StopRequested"] * 2
    assert 0 < stopped[0]["step"] == stopped[1]["step"] < 20
    resumed = start_stage(Attempt(order, "resumed"), root, 2).answers()[0]
    assert manifest_of(root, order.digest).run.resumed
    assert manifest_of(root, order.digest).environment["processes"] == "2, sharded"
    assert weights_of(resumed) == weights_of(whole)


def test_a_sharded_state_is_resumed_by_one_process_and_its_state_by_several(root: Path):
    alone = run_here(an_order_in(root, "alone"), root)
    order = an_order_in(root)
    (first, *_) = start_stage(Attempt(order, "first", stop_after=(1, 20)), root, 2).wait()
    assert first["step"] > 0
    larger = order.model_copy(update={"micro_batch_size": 5})
    with pytest.raises(StopRequested) as second:
        run_here(larger, root, attempt="second", signals=StopAfter(10))
    assert second.value.step > first["step"]
    (state,) = root.glob(f"store/stages/{order.digest}/resume/*-second-*/index.json")
    assert read_json(state)["microBatchSize"] == 5, "what is asked for now, and not the 4 of before"

    answer = start_stage(Attempt(order, "third"), root, 3).answers()[0]

    assert manifest_of(root, order.digest).run.resumed
    assert distance(answer, alone) < 1e-5
