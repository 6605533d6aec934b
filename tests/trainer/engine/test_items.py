"""Outputs per item: every item weighs the same, however rows are padded, cut into micro-batches and dealt to ranks."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from distillchain_api.resource.distillation import Distillation
from distillchain_api.resource.training import Training
from distillchain_store.folder import FileStore
from distillchain_trainer.data.split import key_of
from distillchain_trainer.engine.encoding.distinct_texts import DistinctTexts
from distillchain_trainer.engine.encoding.encoded import CUT_OFF, Encoded
from distillchain_trainer.engine.passes.shared_forward import all_outputs
from distillchain_trainer.engine.passes.teacher_outputs import TeacherOutputs, TeacherPass
from distillchain_trainer.engine.ranks.world import ALONE, World, join_world
from distillchain_trainer.engine.training.optimizer import build_optimizer
from distillchain_trainer.engine.training.step import EagerStep, Work
from distillchain_trainer.engine.training.training_rows import TrainingRows
from distillchain_trainer.engine.training.widths import widths_up_to
from distillchain_trainer.stage.row_losses import row_losses_of
from distillchain_trainer.tasks.interface import TaskAdapter
from trainer.engine.test_modes import Recorded
from trainer.item_parts import CLASSES, ItemRows, Tagger, a_tagger, expected_outputs, item_outputs, item_rows
from trainer.rank_parts import Outcome, start_ranks

pytestmark = pytest.mark.models

CPU = torch.device("cpu")
COUNTS = [1, 2, 7, 64, 65, 200]


class Tagging(TaskAdapter):
    """The methods of a task with items that a training calls."""

    def outputs_of(self, answer: Any, items: dict[str, Tensor]) -> Tensor:
        return item_outputs(answer, items)

    def label_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(
            targets.shape
        )


LOSSES = row_losses_of(Tagging(), None)  # type: ignore[abstract]  # the rest is not called


def labels_of(rows: ItemRows) -> Tensor:
    return torch.arange(sum(rows.item_counts)) * 7 % CLASSES


def is_kept(rows: ItemRows) -> Tensor:
    return torch.from_numpy(np.concatenate(rows.positions) != CUT_OFF)


def mean_loss(model: Tagger, rows: ItemRows) -> Tensor:
    """The mean over the items that were not cut off, computed without batches."""
    kept = is_kept(rows)
    return torch.nn.functional.cross_entropy(expected_outputs(model, rows)[kept], labels_of(rows)[kept])


def a_step(model: Tagger, rows: ItemRows, micro_rows: int, world: World = ALONE) -> EagerStep:
    training = Training(learning_rate=0.01, max_grad_norm=0)
    data = TrainingRows.of(rows.encoded, labels_of(rows), None)
    return EagerStep(Work(model, data, CPU, LOSSES, training, build_optimizer(model, training), CPU, world), micro_rows)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("pad_left", [False, True])
def test_every_item_gets_the_output_of_its_token(count: int, pad_left: bool):
    rows, model = item_rows(count, pad_left=pad_left), a_tagger()

    outputs, _ = all_outputs(model, rows.encoded, item_outputs, precision="float32", on_batch=lambda *_: None)

    np.testing.assert_allclose(outputs, expected_outputs(model, rows).detach(), atol=1e-5)


def test_rows_without_any_item_have_no_outputs():
    none = [np.zeros(0, dtype=np.int32)] * 3
    encoded = Encoded.of([np.ones(4, dtype=np.int32)] * 3, positions=none, pad_id=0)

    outputs, _ = all_outputs(a_tagger(), encoded, item_outputs, precision="float32", on_batch=lambda *_: None)

    assert outputs.shape == (0, CLASSES)


@pytest.mark.parametrize("pad_left", [False, True])
def test_items_of_a_batch_point_at_their_tokens(pad_left: bool):
    rows = item_rows(50, pad_left=pad_left)
    picked = [40, 3, 17, 3, 0]
    width = 14  # wider than any row

    inputs, items = rows.encoded.batch(picked, width=width), rows.encoded.items(picked, width=width)

    for line, row in enumerate(picked):
        kept = rows.positions[row] != CUT_OFF
        inside = items["inside"][line]
        places = items["positions"][line][inside]
        assert inputs["input_ids"][line][places].tolist() == rows.ids[row][rows.positions[row][kept]].tolist()
        assert items["item_ids"][line][inside].tolist() == (np.flatnonzero(kept) + 7).tolist()
        assert inputs["attention_mask"][line][items["positions"][line]].all(), "also padding points at a token"


def test_a_row_with_more_items_than_tokens_is_refused():
    with pytest.raises(ValueError, match="a row has more items than tokens"):
        Encoded.of([np.ones(2, dtype=np.int32)], positions=[np.array([0, 1, 1], dtype=np.int32)], pad_id=0)


@pytest.mark.parametrize("count, micro_rows", [(count, size) for count in (1, 7, 33) for size in (1, 2, 5, 16, 64)])
@pytest.mark.parametrize("pad_left", [False, True])
def test_micro_batches_of_any_size_give_the_gradient_of_the_whole_step(count: int, micro_rows: int, pad_left: bool):
    rows, start = item_rows(count, pad_left=pad_left), a_tagger()
    whole, model = copy.deepcopy(start), copy.deepcopy(start)
    gradients: list[Tensor] = []
    step = a_step(model, rows, micro_rows)
    step.work.update = lambda: gradients.extend(p.grad.clone() for p in model.parameters() if p.grad is not None)  # type: ignore[method-assign]  # looked at in place of the update

    loss = step.run(list(range(count)), stop=lambda: False)

    expected = mean_loss(whole, rows)
    expected.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    assert loss is not None
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
    for parameter, gradient in zip(whole.parameters(), gradients, strict=True):
        torch.testing.assert_close(gradient, parameter.grad, atol=1e-6, rtol=1e-5)


def test_captured_steps_weigh_items_as_eager_ones():
    rows, start = item_rows(61), a_tagger()
    eager, captured = (a_step(copy.deepcopy(start), rows, 8) for _ in range(2))
    recorded = Recorded(captured.work, 8, widths=widths_up_to(11))

    for first in [*range(0, 61, 8)] * 2:
        batch = list(range(first, min(first + 8, 61)))
        want = eager.run(batch, stop=lambda: False)
        assert want is not None
        assert recorded.run(batch).loss.item() == pytest.approx(want.item(), abs=1e-5)

    for one, other in zip(eager.work.model.parameters(), captured.work.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def _train_and_answer(_: Path, counts: list[int]) -> Outcome:
    """A step on so many rows, then the outputs and a teacher's pass."""
    world, found = join_world(), []
    with world.membership():
        for count in counts:
            rows, model = item_rows(count), a_tagger()
            loss = a_step(model, rows, 3, world).run(list(range(count)), stop=lambda: False)
            assert loss is not None
            outputs, _ = all_outputs(
                model, rows.encoded, item_outputs, precision="float32", on_batch=lambda *_: None, world=world
            )
            found.append([loss.item(), *outputs.flatten().tolist()])
    return {"found": found}


def test_two_processes_train_and_answer_as_one(tmp_path: Path):
    alone = _train_and_answer(tmp_path, COUNTS)

    outcomes = start_ranks(_train_and_answer, tmp_path, 2, COUNTS, name="items").wait()

    for outcome in outcomes:
        for one, other in zip(outcome["found"], alone["found"], strict=True):
            np.testing.assert_allclose(one, other, atol=1e-4)


def ask(root: Path, rows: ItemRows, texts: list[int], model: Tagger, world: World = ALONE) -> TeacherOutputs:
    folder = root / "work"
    folder.mkdir(exist_ok=True)
    return TeacherPass(
        store=FileStore(f"file://{root}/store"), digest="d" * 64, model=model, outputs_of=item_outputs,
        encoded=rows.encoded, keys=[key_of((str(text),)) for text in texts], training=Training(), columns=None,
        check=lambda _: None, folder=folder, save_interval_s=0.0, stop=lambda: False, on_batch=lambda *_: None,
        world=world,
    ).run()  # fmt: skip


def taught(rows: ItemRows, found: TeacherOutputs) -> Tensor:
    """What training compares with, [items that were not cut off, classes], in the order of the rows."""
    data = TrainingRows.of(rows.encoded, labels_of(rows), found)
    _, compared = data.batch(torch.arange(len(rows.ids)), width=11)
    return compared["teacher"][compared["inside"]]


def test_stored_outputs_of_items_are_reused_for_more_rows(tmp_path: Path):
    """Rows are repeated, moved and added."""
    first, more = [3, 1, 4, 1, 5, 9, 2, 6], [9, 8, 1, 1, 7, 0, 10, 4, 3, 12]
    ask(tmp_path, item_rows(8, texts=first), first, a_tagger())
    rows, model = item_rows(10, texts=more), a_tagger()

    found = ask(tmp_path, rows, more, model)
    again = ask(tmp_path, rows, more, idle := a_tagger())

    assert model.rows == len(set(more) - set(first))
    assert (idle.rows, again.reused, found.reused) == (0, True, False)
    expected = expected_outputs(a_tagger(), rows)[is_kept(rows)].detach()
    for outputs in (found, again):
        torch.testing.assert_close(taught(rows, outputs), expected, atol=1e-5, rtol=1e-4)


def test_stored_outputs_of_another_number_of_items_are_computed_again(tmp_path: Path):
    def encoded(items: int) -> ItemRows:
        ids, positions = [np.arange(1, 6, dtype=np.int32)], [np.arange(items, dtype=np.int32)]
        return ItemRows(ids, positions, Encoded.of(ids, positions=positions, pad_id=0))

    ask(tmp_path, encoded(3), [0], a_tagger())

    found = ask(tmp_path, encoded(4), [0], model := a_tagger())

    assert (model.rows, found.reused) == (1, False)
    torch.testing.assert_close(taught(encoded(4), found), expected_outputs(a_tagger(), encoded(4)).detach())


def test_items_that_only_the_teacher_cuts_off_weigh_nothing(tmp_path: Path):
    """Tokenizers differ, so a word may be within the limit of one alone. Its zeros are no answer of the teacher."""
    teacher, student = item_rows(40), item_rows(40, cut_off=True, seed=0)
    whole = [np.arange(len(row), dtype=np.int32) for row in teacher.positions]
    ids = [np.ones(len(row) + 1, dtype=np.int32) for row in whole]
    student = ItemRows(ids, whole, Encoded.of(ids, positions=whole, pad_id=0))

    data = TrainingRows.of(student.encoded, labels_of(student), ask(tmp_path, teacher, list(range(40)), a_tagger()))

    assert student.encoded.weights is not None
    assert data.weights is not None
    assert data.weights.sum() == is_kept(teacher).sum() < student.encoded.weights.sum()
    _, compared = data.batch(torch.arange(40), width=max(data.lengths))
    expected = expected_outputs(a_tagger(), teacher)[is_kept(teacher)].detach()
    torch.testing.assert_close(compared["teacher"][compared["inside"]], expected, atol=1e-5, rtol=1e-4)
    assert compared["targets"][compared["inside"]].tolist() == labels_of(teacher)[is_kept(teacher)].tolist()


@pytest.mark.parametrize("count", [1, 2, 50, 3000])
def test_distinct_texts_are_found_by_their_keys(count: int):
    """As a dictionary finds them, with keys that differ in their first bytes, or in later ones only."""
    dice = np.random.default_rng(count)
    keys: NDArray[np.uint8] = dice.integers(0, 3, (count, 32), dtype=np.uint8)
    keys[:, :7] = 0
    others: NDArray[np.uint8] = np.concatenate([keys[::-1], dice.integers(0, 3, (count, 32), dtype=np.uint8)])

    texts = DistinctTexts.of(keys)

    first: dict[bytes, int] = {}
    for row, key in enumerate(keys):
        first.setdefault(key[:16].tobytes(), row)
    assert len(texts) == len(first)
    assert texts.first_rows[texts.place].tolist() == [first[key[:16].tobytes()] for key in keys]
    found = [int(texts.first_rows[number]) if number >= 0 else None for number in texts.find(others)]
    assert found == [first.get(key[:16].tobytes()) for key in others]


def test_the_task_decides_what_an_objective_compares():
    """CausalLM compares the teacher's best tokens alone, which `teacher_pair` picks from the student's logits."""

    class Halves(Tagging):
        def teacher_pair(self, logits: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
            return logits[..., :2], teacher

    losses = row_losses_of(Halves(), Distillation())  # type: ignore[abstract]  # the rest is not called
    logits, teacher = torch.randn(2, 4, CLASSES), torch.randn(2, 3, 2)
    positions, inside = torch.tensor([[0, 3, 0], [1, 0, 0]]), torch.tensor([[True, True, False], [True, False, False]])

    compared = {"positions": positions, "inside": inside, "teacher": teacher, "targets": torch.zeros(2, 3)}
    found = losses(SimpleNamespace(logits=logits), compared)

    def kl(row: int, item: int, place: int) -> Tensor:
        student = logits[row, place, :2].log_softmax(-1)
        return torch.nn.functional.kl_div(student, teacher[row, item].log_softmax(-1), reduction="sum", log_target=True)

    torch.testing.assert_close(found, torch.stack([kl(0, 0, 0) + kl(0, 1, 3), kl(1, 0, 1)]))
