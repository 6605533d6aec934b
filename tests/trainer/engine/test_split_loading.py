"""A model that is split over several processes is loaded by the first one: parts, buffers and memory of all of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from distillchain_trainer.engine.ranks.world import World
from distillchain_trainer.errors import TrainerError
from distillchain_trainer.models.loaded import Loaded
from distillchain_trainer.models.outline import adopt, outline_of
from distillchain_trainer.stage_warnings import StageWarnings
from distillchain_trainer.tasks.causal_lm import models
from trainer import checkpoint_parts, language_parts
from trainer.checkpoint_parts import DECODER, TINY, fetch, save_classifier
from trainer.lora_parts import with_adapter
from trainer.parts import save_bert
from trainer.rank_parts import Outcome, start_ranks

pytestmark = pytest.mark.models

KINDS = ("bert", "roberta", "bert_hash", "gpt2", "llama")


def language_model(folder: Path) -> Loaded:
    return models.load_teacher(fetch(folder), language_parts.a_task(folder), warnings=StageWarnings())


def with_lora(folder: Path) -> Loaded:
    student = checkpoint_parts.load_student(folder)
    with_adapter(student.model)
    return student


def ways_to_load(root: Path) -> dict[str, Callable[[], Loaded]]:
    """What a stage may load, by name."""
    found: dict[str, Callable[[], Loaded]] = {
        kind: partial(checkpoint_parts.load_teacher, root / kind) for kind in KINDS
    }
    return found | {
        "a new head": partial(checkpoint_parts.load_student, root / "encoder"),
        "lora": partial(with_lora, root / "bert"),
        "new weights": partial(checkpoint_parts.build_student, "bert", root / "bert", **TINY),
        "tied": partial(language_model, root / "tied"),
        "not tied": partial(language_model, root / "not-tied"),
    }


def write_checkpoints(root: Path) -> None:
    for kind in KINDS:
        sizes = DECODER if kind == "llama" else {} if kind == "gpt2" else TINY
        small = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64} if kind == "gpt2" else {}
        save_classifier(root / kind, kind, **{**sizes, **small})
    save_bert(root / "encoder", labels=None)
    language_parts.save_llama(root / "tied")
    folder = language_parts.save_llama(root / "not-tied")
    # The config says that they are tied, but the weights have both, and they differ.
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = 2 * weights["model.embed_tokens.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _split_all(_: Path, root: Path) -> Outcome:
    """Loads and splits each model, and puts its parts together again."""
    from distillchain_trainer.engine.device.sharding import shard, sharded_copy, whole
    from distillchain_trainer.engine.ranks.world import join_world
    from distillchain_trainer.models.outline import load_on_main

    world, cpu = join_world(), torch.device("cpu")
    differ, weightless, not_freed = [], [], []
    with world.membership():
        for name, load in ways_to_load(root).items():
            loaded, alone = load_on_main(load, world), load()
            if loaded.is_weightless:
                weightless.append(name)
            copied = sharded_copy(loaded.model, world, device=cpu)
            shard(loaded.model, world, device=cpu)
            for split in (loaded.model, copied):
                if not _is_same(split, alone.model, whole):
                    differ.append(name)
            if loaded.tokenizer.padding_side != alone.tokenizer.padding_side:
                differ.append(f"{name}: padding side")
            parts = [own.detach().to_local().untyped_storage() for own in loaded.model.parameters()]
            loaded.free()
            if any(part.nbytes() for part in parts):
                not_freed.append(name)
    return {"differ": differ, "weightless": weightless, "not freed": not_freed}


def _is_same(split: Any, alone: Any, whole: Callable[[torch.Tensor], torch.Tensor]) -> bool:
    """Bit by bit, buffers included, with the same names and the same ties."""
    names = [name for name, _ in alone.named_parameters()]
    if [name for name, _ in split.named_parameters()] != names or split.training != alone.training:
        return False
    parts = {name: whole(own.detach()) for name, own in split.named_parameters()} | dict(split.named_buffers())
    want = dict(alone.named_parameters()) | dict(alone.named_buffers())
    frozen = [own.requires_grad for own in split.parameters()] == [own.requires_grad for own in alone.parameters()]
    return frozen and parts.keys() == want.keys() and all(torch.equal(parts[name], want[name]) for name in want)


@pytest.mark.parametrize("size", [2, 3])
def test_the_parts_of_a_split_model_are_those_of_the_one_that_rank_0_alone_has_loaded(tmp_path: Path, size: int):
    write_checkpoints(tmp_path)

    outcomes = start_ranks(_split_all, tmp_path, size, tmp_path, name="split").wait()

    assert [outcome["differ"] for outcome in outcomes] == [[]] * size, outcomes
    assert [outcome["weightless"] for outcome in outcomes] == [[], *[list(ways_to_load(tmp_path))] * (size - 1)]
    assert [outcome["not freed"] for outcome in outcomes] == [[]] * size


def test_a_rank_that_builds_another_model_than_rank_0_is_refused(tmp_path: Path):
    one = checkpoint_parts.load_teacher(save_bert(tmp_path / "one"))
    other = checkpoint_parts.load_teacher(save_bert(tmp_path / "other", intermediate_size=16))

    with pytest.raises(TrainerError, match="rank 0 has loaded another model than this rank for file://"):
        adopt(outline_of(one), other)


class Computes(torch.nn.Module):
    """Cannot be built without the values of its tensors, and has one that is neither a parameter nor a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 3)
        self.table = torch.arange(3.0)


def _load_odd(_: Path, __: None) -> Outcome:
    from distillchain_trainer.engine.device.sharding import shard
    from distillchain_trainer.engine.ranks.world import join_world
    from distillchain_trainer.models.outline import load_on_main

    world: World = join_world()
    with world.membership():
        tokenizer = type("Tokenizer", (), {"padding_side": "right", "init_kwargs": {}})()
        torch.manual_seed(world.rank)
        loaded = load_on_main(lambda: Loaded(Computes(), tokenizer, "odd", pretrained=False), world)
        before = loaded.is_weightless
        shard(loaded.model, world, device=torch.device("cpu"))
        bias = loaded.model.layer.bias.full_tensor().tolist()
    return {"weightless": before, "table": loaded.model.table.tolist(), "bias": bias}


def test_a_model_that_cannot_be_built_without_weights_is_loaded_by_all_ranks_and_has_those_of_rank_0(tmp_path: Path):
    first, second = start_ranks(_load_odd, tmp_path, 2, None, name="odd").wait()

    assert first == second | {"log": first["log"]}
    assert not second["weightless"]
    assert second["table"] == [0.0, 1.0, 2.0]
