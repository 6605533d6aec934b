"""Students that start as some layers of their teacher: the same as a teacher whose other layers are removed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from distillchain_api.resource.from_teacher import FromTeacher
from distillchain_trainer.errors import CheckpointInvalid
from distillchain_trainer.models.checkpoints import Checkpoint
from distillchain_trainer.models.fewer_layers import SUPPORTED, with_fewer_layers
from distillchain_trainer.models.loaded import Loaded
from distillchain_trainer.stage_warnings import StageWarnings
from distillchain_trainer.tasks import adapter_for
from trainer.checkpoint_parts import (
    DECODER,
    TINY,
    a_task,
    fetch,
    load_teacher,
    save_classifier,
    shard,
)
from trainer.parts import an_order, manifest_of, run_here, save_bert

pytestmark = pytest.mark.models

TEXTS = ("the film is good and lovely", "bad", "a dull boring story with weak acting")
FIELD = "spec.stages[0].student.fromTeacher"
FOUR = {**TINY, "num_hidden_layers": 4}
CONFIGS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(SUPPORTED, FOUR),
    "distilbert": {"dim": 16, "n_layers": 4, "n_heads": 2, "hidden_dim": 32},
    "gpt2": {"n_embd": 16, "n_layer": 4, "n_head": 2},
    "modernbert": {**FOUR, "global_attn_every_n_layers": 3, "local_attention": 4},
    **{kind: {**DECODER, "num_hidden_layers": 4, "vocab_size": 64} for kind in ("llama", "mistral", "qwen2", "qwen3")},
}


def take(teacher: Path, wanted: FromTeacher, folder: Path) -> Checkpoint:
    return with_fewer_layers(fetch(teacher), wanted, field=FIELD, folder=folder, warnings=StageWarnings())


def load(start: Checkpoint) -> Loaded:
    return adapter_for(a_task(), StageWarnings()).load_student(start, tokenizer=None, seed=1)


def answers(loaded: Loaded, *texts: str) -> torch.Tensor:
    """Logits [texts, classes], each text by itself."""
    loaded.model.eval()
    loaded.model.config.use_cache = False  # the cache of the edited teacher still counts all layers
    with torch.no_grad():
        return torch.cat([loaded.model(**loaded.tokenizer(text, return_tensors="pt")).logits for text in texts])


def without_other_layers(teacher: Loaded, chosen: list[int]) -> Loaded:
    """The teacher, whose module list keeps the chosen layers alone."""
    (name,) = [name for name, module in teacher.model.named_modules() if isinstance(module, nn.ModuleList) and len(module) == 4]  # fmt: skip
    parent, _, own = name.rpartition(".")
    layers = teacher.model.get_submodule(name)
    setattr(teacher.model.get_submodule(parent), own, nn.ModuleList(layers[index] for index in chosen))
    teacher.model.config.num_hidden_layers = len(chosen)
    if getattr(teacher.model.config, "layer_types", None):
        teacher.model.config.layer_types = [teacher.model.config.layer_types[index] for index in chosen]
    return teacher


@pytest.mark.parametrize("kind", SUPPORTED)
def test_a_student_answers_as_its_teacher_without_the_other_layers(tmp_path: Path, kind: str):
    teacher = save_classifier(tmp_path / "teacher", kind, **CONFIGS[kind])

    student = load(take(teacher, FromTeacher(layers=2), tmp_path / "student"))

    want = answers(without_other_layers(load_teacher(teacher), [0, 3]), *TEXTS)
    assert abs(want).max() > 1e-3
    assert abs(want - answers(load_teacher(teacher), *TEXTS)).max() > 1e-3
    torch.testing.assert_close(answers(student, *TEXTS), want)
    assert student.pretrained
    assert student.start.startswith(f"file://{teacher} (layers 0, 3 of 4) (sha256:")


def test_layers_of_a_sharded_teacher_are_taken_by_their_numbers(tmp_path: Path):
    teacher = save_classifier(tmp_path / "teacher", "bert", **FOUR)
    shard(teacher)

    start = take(teacher, FromTeacher(indices=[1, 2]), tmp_path / "student")

    want = answers(without_other_layers(load_teacher(teacher), [1, 2]), *TEXTS)
    torch.testing.assert_close(answers(load(start), *TEXTS), want)
    assert start.digest != take(teacher, FromTeacher(indices=[1, 3]), tmp_path / "other").digest


@pytest.mark.parametrize(
    "kind, wanted, want",
    [
        pytest.param("bert", FromTeacher(layers=5), ".layers: got 5, expected 4 at most; the teacher {t} has 4 layers", id="more layers than it has"),
        pytest.param("bert", FromTeacher(indices=[0, 4]), ".indices: got 4, expected layers from 0 to 3; the teacher {t} has 4 layers", id="a layer that it does not have"),
        pytest.param("modernbert", FromTeacher(indices=[1, 3]), ".indices: got [1, 3], which puts layer 1 in the place of 0, but a modernbert has other weights there (attn_norm.weight); choose indices that keep such layers in their place, or copy the checkpoint again if it is incomplete", id="another first layer"),
        pytest.param("albert", FromTeacher(layers=2), f": {{t}} is a albert, whose layers cannot be taken one by one; use a teacher of one of {', '.join(SUPPORTED)}, or another start", id="shared layers"),
    ],
)  # fmt: skip
def test_layers_that_cannot_be_taken_are_refused(tmp_path: Path, kind: str, wanted: FromTeacher, want: str):
    teacher = save_classifier(tmp_path / "teacher", kind, **FOUR)

    with pytest.raises(CheckpointInvalid) as failure:
        take(teacher, wanted, tmp_path / "student")

    assert str(failure.value) == FIELD + want.format(t=f"file://{teacher}")


def test_a_stage_trains_such_a_student_and_records_its_start(tmp_path: Path, root: Path):
    save_bert(root / "deep", num_hidden_layers=3)
    order = an_order(root, teacher={"model": f"file://{root}/deep", "fineTune": {"epochs": 3}}, student={"fromTeacher": {"layers": 1}}, stage=1)  # fmt: skip
    run_here(an_order(root, teacher={"model": f"file://{root}/deep", "fineTune": {"epochs": 3}}), root, attempt="zero")

    answer = run_here(order, root)

    manifest = manifest_of(root, order.digest)
    assert answer.pretrained
    assert "(layer 0 of 3)" in manifest.start
    assert manifest.teacher is not None
    assert manifest.student.parameters < manifest.teacher.parameters
