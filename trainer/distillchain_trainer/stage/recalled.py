"""A teacher that its pass has measured and asked: the stage knows its facts and answers, and has no weights of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import torch
from numpy.typing import NDArray
from transformers import GenerationConfig

from distillchain_api.layout import CHECKPOINT_FOLDER, RESULTS_FOLDER, logits_prefix, pass_manifest_key
from distillchain_api.wire.pass_manifest import OUTPUTS_FILE, PassManifest
from distillchain_store.errors import AGAIN, CheckpointCorrupt
from distillchain_store.passes import download_pass, read_pass
from distillchain_trainer.models.checkpoints import Checkpoint
from distillchain_trainer.models.configs import load_config
from distillchain_trainer.models.loaded import Loaded
from distillchain_trainer.models.tokenizers import agree_on_padding, load_tokenizer
from distillchain_trainer.stage.context import Context
from distillchain_trainer.stage.pass_checks import check_same_teacher, withdrawn_if_unusable
from distillchain_trainer.stage_warnings import StageWarnings


class Weightless:
    """What the engine asks of a model that computes nothing: its configuration, and where it would be."""

    def __init__(self, config: Any, generation_config: Any) -> None:
        self.config = config
        self.generation_config = generation_config

    def parameters(self) -> Iterator[torch.Tensor]:
        """None that count; the engine asks the first one for its device."""
        yield torch.empty(0)

    def to(self, _device: Any) -> Weightless:
        """Has nothing to move."""
        return self


@dataclass(frozen=True)
class Recalled:
    """The teacher of a stage as its pass has left it.

    Attributes:
        folder: with the files of the pass.
    """

    manifest: PassManifest
    folder: Path

    @property
    def checkpoint(self) -> Checkpoint:
        """Where it comes from; the folder has no weights."""
        facts = self.manifest.teacher
        return Checkpoint(
            uri=facts.source,
            field="the teacher",
            folder=self.folder / CHECKPOINT_FOLDER,
            revision=facts.revision,
            digest=self.manifest.teacher_files,
            weight_bytes=facts.size_bytes,
            license=self.manifest.license,
        )

    def load(self) -> Loaded:
        """Its tokenizer and configuration. Raises: CheckpointInvalid."""
        checkpoint = self.checkpoint
        # Its warnings are those of the pass, which the stage repeats.
        config, tokenizer = load_config(checkpoint, warnings=StageWarnings()), load_tokenizer(checkpoint)
        agree_on_padding(tokenizer, config, what=checkpoint.uri, warnings=StageWarnings())
        stated = (checkpoint.folder / "generation_config.json").is_file()
        generation = GenerationConfig.from_pretrained(checkpoint.folder) if stated else None
        columns = None if self.manifest.columns is None else tuple(self.manifest.columns)
        model = Weightless(config, generation)
        return Loaded(model, tokenizer, f"{checkpoint.uri} ({checkpoint.revision})", pretrained=True, columns=columns)

    def outputs(self, split: str) -> NDArray[np.float32]:
        """What it answered for a split that is measured, in the order of the task."""
        found = safetensors.numpy.load_file(self.folder / RESULTS_FOLDER / OUTPUTS_FILE.format(split=split))
        outputs: NDArray[np.float32] = found["outputs"]
        return outputs


def recall_teacher(context: Context, digest: str) -> Recalled:
    """The committed pass of the stage's teacher, fetched by one process of each node.

    Raises: CheckpointCorrupt when it is missing, altered or of another teacher; errors of the store.
    """
    folder = context.folder / "pass"

    def fetched() -> str:
        manifest = read_pass(context.store, digest)
        if manifest is None:
            raise CheckpointCorrupt(
                f"{context.store.uri}/{pass_manifest_key(digest)} is missing: the pass of this stage's teacher is no "
                f"longer committed; {AGAIN}, and the pass runs again first"
            )
        check_same_teacher(context, manifest)
        with withdrawn_if_unusable(context, manifest):
            download_pass(context.store, manifest, folder)
        return manifest.to_json()

    return Recalled(PassManifest.parse(context.world.from_leader(fetched, "download of the teacher's pass")), folder)


def check_same_rows(context: Context, recalled: Recalled, found: dict[str, str]) -> None:
    """That measured splits are those of the pass. Raises: CheckpointCorrupt.

    Args:
        found: sha256 of the rows by split.
    """
    for name, sha256 in found.items():
        known = recalled.manifest.data.get(name)
        if known is None or known.sha256 != sha256:
            with withdrawn_if_unusable(context, recalled.manifest):
                raise CheckpointCorrupt(
                    f"the rows of {name} have changed since the teacher's pass ran, so its metrics are for other rows"
                )


def refuse_missing(context: Context, recalled: Recalled, missing: int, texts: int) -> None:
    """For a stage that cannot compute them. Raises: CheckpointCorrupt."""
    with withdrawn_if_unusable(context, recalled.manifest):
        raise CheckpointCorrupt(
            f"{logits_prefix(recalled.manifest.logits)} lacks the teacher's outputs of {missing} of {texts} texts: "
            "they were deleted, or the training rows have changed since the pass"
        )
