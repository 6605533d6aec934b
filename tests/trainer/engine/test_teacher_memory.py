"""The teacher's outputs on several ranks: all have them, and no process holds them in memory of its own."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from bench.memory import Peak

from distillchain_api.resource.training import Training
from distillchain_store.folder import FileStore
from distillchain_trainer.data.split import key_of
from distillchain_trainer.engine.encoding.encoded import Encoded
from distillchain_trainer.engine.passes import output_parts, shared_forward, teacher_outputs
from distillchain_trainer.engine.passes.teacher_outputs import TeacherOutputs, TeacherPass
from distillchain_trainer.engine.ranks.world import World, join_world
from trainer.rank_parts import Outcome, start_ranks

pytestmark = pytest.mark.models


class Teacher(torch.nn.Module):
    """Its logits for each token are the token's id plus the class."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.arange(classes, dtype=torch.float32))

    def forward(self, input_ids: Any, **_: Any) -> Any:
        return SimpleNamespace(logits=input_ids.unsqueeze(-1).float() + self.weight)


def small_blocks() -> None:
    """Blocks of 1 MiB, so that tests need little data. For a process of its own."""
    for module, name in (
        (output_parts, "PART_BYTES"),
        (teacher_outputs, "PART_BYTES"),
        (teacher_outputs, "SENT_BYTES"),
        (shared_forward, "EXCHANGED_BYTES"),
    ):
        setattr(module, name, 2**20)


def ask(folder: Path, encoded: Encoded, texts: list[int], classes: int, world: World) -> TeacherOutputs:
    """The outputs for each token of an item, or for the first token of each row."""

    def outputs_of(answer: Any, items: dict[str, torch.Tensor]) -> torch.Tensor:
        if not items:
            return answer.logits[:, 0]
        return answer.logits.gather(1, items["positions"].unsqueeze(-1).expand(-1, -1, classes))

    work = folder / "logits"
    work.mkdir(exist_ok=True)
    return TeacherPass(
        store=FileStore(f"file://{folder.parent}/store"),
        digest="d" * 64,
        model=Teacher(classes),
        outputs_of=outputs_of,
        encoded=encoded,
        keys=[key_of((str(text),)) for text in texts],
        training=Training(),
        columns=None,
        check=lambda _: None,
        folder=work,
        save_interval_s=3600.0,
        stop=lambda: False,
        on_batch=lambda *_: None,
        world=world,
    ).run()


def _measure(folder: Path, sizes: list[int]) -> Outcome:
    """The peak memory of a pass over so many rows, and of one that finds all outputs in the store."""
    small_blocks()
    found = []
    world = join_world()
    with world.membership():
        # The first size twice: what is loaded and kept by allocators at first does not count.
        for rows in [sizes[0], *sizes]:
            texts = list(range(5, 5 + rows))
            encoded = Encoded.of([np.array([text], dtype=np.int32) for text in texts], pad_id=0)
            with Peak() as peak:
                first = ask(folder, encoded, texts, 2_000, world)
                again = ask(folder, encoded, texts, 2_000, world)
            found.append(peak.memory.anonymous_mib)
            for outputs in (first, again):
                assert outputs.values[outputs.place][:, 7].tolist() == [text + 7 for text in texts]
            world.meet("end of a size")
            if world.is_main:
                for path in (folder.parent / "store").rglob("*.safetensors"):
                    path.unlink()
            world.meet("end of a store")
    return {"grown_mib": found[2] - found[1]}


def test_memory_of_each_rank_does_not_depend_on_rows_times_classes(tmp_path: Path):
    """A rank held all outputs, and while stored ones were sent, as many more for each rank."""
    few, many = 1_000, 6_000

    outcomes = start_ranks(_measure, tmp_path, 2, [few, many], nodes=2, name="memory").wait()

    logits_mib = (many - few) * 2_000 * 4 / 2**20
    grown = [outcome["grown_mib"] for outcome in outcomes]
    assert max(grown) < 0.3 * logits_mib, f"{grown} MiB for {logits_mib:.0f} MiB of logits"


def _teach_items(folder: Path, rows: int) -> Outcome:
    """The outputs of rows with no, one or many items, half of which are in the store already."""
    small_blocks()
    world = join_world()
    with world.membership():
        texts = [row % 150 for row in range(rows)]  # some are repeated
        ids = [np.arange(text, text + 2 + text % 9, dtype=np.int32) for text in texts]
        positions = [np.arange(text % 5 if text % 5 < len(row) else 0) for text, row in zip(texts, ids, strict=True)]
        encoded = Encoded.of(ids, positions=positions, pad_id=0)
        half = Encoded.of(ids[: rows // 2], positions=positions[: rows // 2], pad_id=0)
        ask(folder, half, texts[: rows // 2], 3_000, world)
        found = ask(folder, encoded, texts, 3_000, world)
        again = ask(folder, encoded, texts, 3_000, world)
    assert again.reused
    assert not found.reused
    assert found.starts is not None
    expected = [[int(row[place]) for place in places] for row, places in zip(ids, positions, strict=True)]
    for outputs in (found, again):
        starts = found.starts[found.place]
        values = [
            outputs.values[start : start + len(row), 0].tolist() for start, row in zip(starts, expected, strict=True)
        ]
        assert values == expected
    return {}


def test_all_ranks_of_all_nodes_have_the_outputs_of_items(tmp_path: Path):
    """In many blocks, parts and exchanges: the outputs of a row take 12 to 48 KB."""
    outcomes = start_ranks(_teach_items, tmp_path, 4, 240, nodes=2, name="items").wait()

    assert [outcome.keys() for outcome in outcomes] == [{"log"}] * 4
    assert len(list(tmp_path.glob("store/logits/*/*"))) > 2
