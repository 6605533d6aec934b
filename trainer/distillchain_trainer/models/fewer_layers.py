"""A checkpoint with some of the layers of another, as files: no model is built, and one file is in memory at a time."""

from __future__ import annotations

import json
import re
import shutil
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch

from distillchain_api.faults import got
from distillchain_api.resource.from_teacher import FromTeacher
from distillchain_trainer.errors import CheckpointInvalid
from distillchain_trainer.models.checkpoint_files import INDEX, WANTED, read_header, read_json, weight_files
from distillchain_trainer.models.checkpoints import Checkpoint, fetch_checkpoint
from distillchain_trainer.models.configs import load_config
from distillchain_trainer.stage_warnings import StageWarnings

LAYER = re.compile(r"^((?:[^.\d][^.]*\.)*)(\d+)\.")  # the first number in a tensor's name is that of its layer
# Tested with each. In others a layer may depend on its number, or on weights outside of it.
SUPPORTED = (
    "bert", "bert_hash", "roberta", "xlm-roberta", "distilbert", "electra", "deberta", "deberta-v2", "modernbert",
    "gpt2", "llama", "mistral", "qwen2", "qwen3",
)  # fmt: skip


def with_fewer_layers(
    teacher: Checkpoint, wanted: FromTeacher, *, field: str, folder: Path, warnings: StageWarnings
) -> Checkpoint:
    """Writes a checkpoint with the wanted layers of `teacher` into `folder`, which must not exist.

    Args:
        field: of the spec that asks for the layers, for messages.
    Raises: CheckpointInvalid for an architecture whose layers cannot be taken one by one, or without such layers.
    """
    # Its warnings are those of the teacher, which has been loaded already.
    config = load_config(teacher, warnings=warnings)
    if config.model_type not in SUPPORTED:
        raise CheckpointInvalid(
            f"{field}: {teacher.uri} is a {config.model_type}, whose layers cannot be taken one by one; use a teacher "
            f"of one of {', '.join(SUPPORTED)}, or another start"
        )
    count = int(config.num_hidden_layers)
    stated = f"{field}.{'indices' if wanted.indices else 'layers'}"
    try:
        chosen = wanted.chosen(count)
    except ValueError as error:
        raise CheckpointInvalid(
            f"{stated}: {error}; the teacher {teacher.uri} has {count} {'layer' if count == 1 else 'layers'}"
        ) from error
    names = _names_of_weights(teacher, field)
    prefix, endings = _layers(teacher, chain.from_iterable(names.values()), count, field=field)
    for new, old in enumerate(chosen):
        # Such as the norm that layer 0 of a ModernBERT does not have.
        if others := endings[old] ^ endings[new]:
            raise CheckpointInvalid(
                f"{stated}: {got(wanted.indices or wanted.layers)}, which puts layer {old} in the place of {new}, "
                f"but a {config.model_type} has other weights there ({', '.join(sorted(others))}); choose indices "
                "that keep such layers in their place, or copy the checkpoint again if it is incomplete"
            )
    folder.mkdir(parents=True)
    _copy_other_files(teacher.folder, folder)
    _write_config(teacher, config, chosen, folder)
    _write_weights(teacher, names, prefix, chosen, folder, field=field)
    own = fetch_checkpoint(f"file://{folder}", field=field, endpoint_url=None, region=None, folder=folder)
    shown = f"{'layer' if len(chosen) == 1 else 'layers'} {', '.join(map(str, chosen))} of {count}"
    return replace(own, uri=f"{teacher.uri} ({shown})")


def _copy_other_files(source: Path, folder: Path) -> None:
    """Everything but the weights; config.json is written again afterwards."""
    for path in source.iterdir():
        if path.is_file() and path.name.endswith(WANTED) and not path.name.endswith((".safetensors", INDEX)):
            shutil.copyfile(path, folder / path.name)


def _write_config(teacher: Checkpoint, config: Any, chosen: Sequence[int], folder: Path) -> None:
    document, count = teacher.config(), config.num_hidden_layers
    # Some architectures call it n_layer or n_layers.
    document[type(config).attribute_map.get("num_hidden_layers", "num_hidden_layers")] = len(chosen)
    # What each layer attends to. By default it follows from the layer's number, which changes here.
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:
        assert len(kinds) == count
        document["layer_types"] = [kinds[index] for index in chosen]
    (folder / "config.json").write_text(json.dumps(document, indent=2), encoding="utf-8")


def _write_weights(
    teacher: Checkpoint, names: dict[str, list[str]], prefix: str, chosen: Sequence[int], folder: Path, *, field: str
) -> None:
    place = {old: new for new, old in enumerate(chosen)}
    where: dict[str, str] = {}
    for file, listed in names.items():
        kept = {name: new for name in listed if (new := _renamed(name, prefix, place)) is not None}
        if not kept:
            continue
        with safetensors.safe_open(teacher.folder / file, framework="pt") as opened:
            tensors = {new: opened.get_tensor(name) for name, new in kept.items()}
        safetensors.torch.save_file(tensors, folder / file, metadata={"format": "pt"})
        where |= dict.fromkeys(tensors, file)
    if (teacher.folder / INDEX).exists():
        index = read_json(teacher.folder / INDEX, f"{field}: {teacher.uri}/{INDEX}") | {"weight_map": where}
        (folder / INDEX).write_text(json.dumps(index), encoding="utf-8")


def _names_of_weights(teacher: Checkpoint, field: str) -> dict[str, list[str]]:
    """By file."""
    files = weight_files(teacher.folder, uri=teacher.uri, field=field)
    return {file: list(read_header(teacher.folder / file, f"{field}: {teacher.uri}/{file}")) for file in files}


def _layers(teacher: Checkpoint, names: Iterable[str], count: int, *, field: str) -> tuple[str, dict[int, set[str]]]:
    """What the names of the tensors of all layers begin with, such as `bert.encoder.layer.`, and end with, by layer.

    Raises: CheckpointInvalid.
    """
    stacks: defaultdict[str, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
    for name in names:
        if found := LAYER.match(name):
            stacks[found[1]][int(found[2])].add(name[found.end() :])
    complete = [(prefix, layers) for prefix, layers in stacks.items() if layers.keys() == set(range(count))]
    # Two would be ambiguous, such as those of an encoder and a decoder.
    if len(complete) != 1:
        raise CheckpointInvalid(
            f"{field}: the weights of {teacher.uri} do not have {count} numbered layers as config.json says; copy the "
            "checkpoint again"
        )
    return complete[0]


def _renamed(name: str, prefix: str, place: dict[int, int]) -> str | None:
    """The name of a tensor in the new checkpoint; None if its layer is left out."""
    found = LAYER.match(name)
    if found is None or found[1] != prefix:
        return name
    new = place.get(int(found[2]))
    return None if new is None else f"{prefix}{new}.{name[found.end() :]}"
