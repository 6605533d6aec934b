"""The trainer's part of the toy task StarRating. This folder goes to trainer/tasks/star_rating."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from distillchain_api.tasks.star_rating import StarRating  # type: ignore[import-not-found]  # exists in the test's copy
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from distillchain_api.resource.student import Architecture
from distillchain_api.task import Task
from distillchain_store.store import Store, path_of_uri
from distillchain_trainer.data.split import Split, TaskData
from distillchain_trainer.data.split_writer import SplitWriter
from distillchain_trainer.data.tables import read_table
from distillchain_trainer.engine.encoding.encoded import Encoded
from distillchain_trainer.engine.encoding.encoding import Encoder
from distillchain_trainer.models.checkpoints import Checkpoint
from distillchain_trainer.models.configs import build_config, load_config
from distillchain_trainer.models.loaded import Loaded
from distillchain_trainer.models.loading import load_base, load_whole
from distillchain_trainer.models.memory import Processes
from distillchain_trainer.models.tokenizers import load_tokenizer
from distillchain_trainer.stage_warnings import StageWarnings
from distillchain_trainer.tasks.interface import Measurement, TaskAdapter


def bind(task: Task, warnings: StageWarnings) -> StarRatingAdapter:
    return StarRatingAdapter(task, warnings)


@dataclass(frozen=True)
class Rated:
    stars: int
    outputs: NDArray[np.float32]
    truth: NDArray[np.float32]

    @property
    def metrics(self) -> dict[str, float]:
        return {"closeness": 1 - float(np.abs(self.outputs[:, 0] - self.truth).mean()) / self.stars}

    @property
    def doubt(self) -> str | None:
        constant = 1 - float(np.abs(self.truth.mean() - self.truth).mean()) / self.stars
        return None if self.metrics["closeness"] > constant else "it is no closer than the mean of all ratings"

    @property
    def warnings(self) -> list[str]:
        return []

    def write_predictions(self, path: Path) -> None:
        rows = [{"row": row, "stars": float(value)} for row, value in enumerate(self.outputs[:, 0])]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@dataclass
class StarRatingAdapter(TaskAdapter):
    task: Any
    notes: StageWarnings
    encoder: Encoder = field(init=False)

    def __post_init__(self) -> None:
        assert isinstance(self.task, StarRating)
        self.encoder = Encoder(self.task.max_length, warnings=self.notes)

    def read_data(self, *, endpoint_url: str | None, region: str | None, folder: Path) -> TaskData:
        dataset = self.task.dataset

        def read(role: str, name: str) -> Split:
            writer = SplitWriter(folder / role, role)
            columns = [*dataset.text, dataset.label]
            for row in read_table(path_of_uri(dataset.uri) / name, columns, name=name, warnings=self.notes).rows:
                writer.add(row.cells[:-1], float(row.cells[-1]), number=row.number)
            return writer.close()

        names = dataset.splits
        return TaskData(read("train", names.train), read("validation", names.validation), None, "toy")

    def load_teacher(self, checkpoint: Checkpoint) -> Loaded:
        config = load_config(checkpoint, warnings=self.notes)
        model = load_whole(AutoModelForSequenceClassification, checkpoint, config)
        return Loaded(model, load_tokenizer(checkpoint), checkpoint.uri, pretrained=True)

    def load_student(self, checkpoint: Checkpoint, *, tokenizer: Checkpoint | None, seed: int) -> Loaded:
        from transformers import AutoModel

        config = load_config(checkpoint, warnings=self.notes)
        config.num_labels = 1
        torch.manual_seed(seed)
        base, _ = load_base(AutoModel, checkpoint, config)
        model = AutoModelForSequenceClassification.from_config(config)  # type: ignore[no-untyped-call]  # half typed
        model.base_model.load_state_dict(base.state_dict(), strict=False)
        return Loaded(model, load_tokenizer(tokenizer or checkpoint), checkpoint.uri, pretrained=True)

    def build_student(
        self, architecture: Architecture, tokenizer: Checkpoint, *, seed: int, field: str, processes: Processes
    ) -> Loaded:
        loaded, config = load_tokenizer(tokenizer), build_config(architecture, field=field)
        config.vocab_size, config.pad_token_id, config.num_labels = len(loaded), loaded.pad_token_id, 1
        torch.manual_seed(seed)
        model = AutoModelForSequenceClassification.from_config(config)  # type: ignore[no-untyped-call]  # half typed
        return Loaded(model, loaded, f"architecture:{architecture.model_type}", pretrained=False)

    def encode(self, split: Split, loaded: Loaded, *, check: Callable[[], None]) -> Encoded:
        return self.encoder.encode(split, loaded.tokenizer, pad_id=loaded.pad_id, check=check)

    def outputs_of(self, answer: Any, _items: dict[str, Tensor], /) -> Tensor:
        logits: Tensor = answer.logits
        return logits

    def targets(self, split: Split) -> Tensor:
        return torch.from_numpy(np.asarray(split.targets, dtype=np.float32))

    def label_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        return (logits[:, 0] - targets).square()

    def measure(self, split: Split, outputs: NDArray[np.float32]) -> Rated:
        return Rated(self.task.stars, outputs, np.asarray(split.targets, dtype=np.float32))

    def write_comparison(
        self, folder: Path, store: Store, split: Split, *, student: Measurement, teacher: Measurement, root: str | None
    ) -> None:
        return None
