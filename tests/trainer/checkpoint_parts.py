"""Checkpoints for tests: small random models with a tokenizer, edits that spoil them, and how the trainer loads them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load, save_file

from distillchain_api.resource.student import Architecture
from distillchain_api.tasks.text_classification import TextClassification
from distillchain_trainer.data.split import Split, key_of
from distillchain_trainer.engine.encoding.encoding import Encoder
from distillchain_trainer.engine.passes.shared_forward import all_outputs
from distillchain_trainer.models.checkpoint_files import Parts
from distillchain_trainer.models.checkpoints import Checkpoint, fetch_checkpoint
from distillchain_trainer.models.memory import Processes
from distillchain_trainer.stage_warnings import StageWarnings
from distillchain_trainer.tasks.sequences import heads
from distillchain_trainer.tasks.sequences.head import Head
from distillchain_trainer.tasks.sequences.heads import SequenceModel
from distillchain_trainer.tasks.text_classification.adapter import TextClassificationAdapter
from trainer.parts import LABELS, an_order, read_json, save_tokenizer

Edit = Callable[[Path], None]

TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
DECODER = {**TINY, "num_key_value_heads": 2, "max_position_embeddings": 64}


def a_task(**task: Any) -> TextClassification:
    found = an_order(Path("/nowhere"), task=task).task
    assert isinstance(found, TextClassification)
    return found


def a_head(**task: Any) -> Head:
    return TextClassificationAdapter(a_task(**task), StageWarnings()).head


def fetch(folder: Path, *, field: str = "spec.teacher.model", parts: Parts = "all") -> Checkpoint:
    return fetch_checkpoint(
        f"file://{folder}", field=field, endpoint_url=None, region=None, folder=folder / "unused", parts=parts
    )


def load_teacher(folder: Path, warnings: StageWarnings | None = None, **task: Any) -> SequenceModel:
    return heads.load_teacher(fetch(folder), a_head(**task), warnings=warnings or StageWarnings())


def load_student(
    folder: Path, warnings: StageWarnings | None = None, *, tokenizer: Path | None = None, seed: int = 1, **task: Any
) -> SequenceModel:
    other = fetch(tokenizer, field="spec.stages[0].student.tokenizer", parts="tokenizer") if tokenizer else None
    start = fetch(folder, field="spec.stages[0].student.model", parts="weights" if tokenizer else "all")
    return heads.load_student(start, a_head(**task), tokenizer=other, seed=seed, warnings=warnings or StageWarnings())


def build_student(
    kind: str, tokenizer: Path, warnings: StageWarnings | None = None, *, seed: int = 1, **config: Any
) -> SequenceModel:
    return heads.build_student(
        Architecture(model_type=kind, config=config),
        fetch(tokenizer, field="spec.stages[0].student.tokenizer", parts="tokenizer"),
        a_head(),
        seed=seed,
        field="spec.stages[0].student",
        processes=Processes(),
        warnings=warnings or StageWarnings(),
    )


def save_classifier(folder: Path, kind: str, *, labels: list[str] = LABELS, **config: Any) -> Path:
    """A random classifier of any model type, with weights large enough that its answers differ, and a tokenizer."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    words = len(save_tokenizer(folder))
    settings = AutoConfig.for_model(kind, **{"vocab_size": words, "pad_token_id": 0, **config})
    settings.id2label, settings.label2id = dict(enumerate(labels)), {name: i for i, name in enumerate(labels)}
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(settings)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(10)
    model.save_pretrained(folder)
    return folder


def answers(classifier: SequenceModel, *texts: str) -> NDArray[np.float32]:
    """Logits [texts, classes] of one batch, in the order of the task."""
    rows = [(text,) for text in texts]
    split = Split("validation", rows, [0] * len(rows), [key_of(row) for row in rows])
    encoded = Encoder(a_task().max_length, warnings=StageWarnings()).encode(
        split, classifier.tokenizer, pad_id=classifier.pad_id
    )
    outputs, _ = all_outputs(
        classifier.model, encoded, lambda answer, _: answer.logits, precision="float32", on_batch=lambda *_: None
    )
    return classifier.in_task_order(outputs)


def edit_json(name: str, **changes: Any) -> Edit:
    """Sets fields of a JSON file; None deletes a field."""

    def edit(folder: Path) -> None:
        content = (read_json(folder / name) if (folder / name).exists() else {}) | changes
        (folder / name).write_text(json.dumps({key: value for key, value in content.items() if value is not None}))

    return edit


def edit_config(**changes: Any) -> Edit:
    return edit_json("config.json", **changes)


def weights_in(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of a checkpoint, independent of their file: it may be overwritten."""
    return load((folder / "model.safetensors").read_bytes())


def edit_weights(change: Callable[[dict[str, torch.Tensor]], None]) -> Edit:
    def edit(folder: Path) -> None:
        weights = weights_in(folder)
        change(weights)
        content = {name: weight.contiguous() for name, weight in weights.items()}
        save_file(content, folder / "model.safetensors", metadata={"format": "pt"})

    return edit


def write(name: str, content: bytes | str) -> Edit:
    def edit(folder: Path) -> None:
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)

    return edit


def delete(*names: str) -> Edit:
    def edit(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return edit


def shard(folder: Path) -> None:
    """Splits the weights into several files with an index."""
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="4KB")


def both(*edits: Edit) -> Edit:
    def edit(folder: Path) -> None:
        for one in edits:
            one(folder)

    return edit


LFS_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4cac\nsize 268\n"
LORA = both(write("adapter_config.json", '{"peft_type": "LORA"}'), write("adapter_model.safetensors", b""))
