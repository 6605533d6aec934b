"""Where a checkpoint comes from: a folder, S3, the hub or a committed stage; and that it is of a kind we load.

Safetensors only, no remote code. Knows files, not models.
"""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distillchain_api.digests import sha256_of
from distillchain_api.wire.manifest import Manifest
from distillchain_store.opening import open_store
from distillchain_store.store import Store, fingerprint_of, path_of_uri
from distillchain_store.verified import download_file
from distillchain_trainer.errors import CheckpointInvalid, reading
from distillchain_trainer.models import hub

log = logging.getLogger(__name__)

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".msgpack", ".h5")
WANTED = (".json", ".safetensors", ".txt", ".model")
TOKENIZERS = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "tokenizer.model", "sentencepiece.bpe.model")


@dataclass(frozen=True)
class Checkpoint:
    """The files of a checkpoint on this machine.

    Attributes:
        uri: what messages call it.
        field: where in the spec a person named it.
        revision: commit of the hub, else the sha256 over its weights.
        digest: sha256 over config, weights and tokenizer: the same digest gives the same outputs.
    """

    uri: str
    field: str
    folder: Path
    revision: str
    digest: str
    weight_bytes: int

    def config(self) -> dict[str, Any]:
        """config.json."""
        return _json(self.folder / "config.json", self)


def fetch_checkpoint(
    uri: str, *, field: str, endpoint_url: str | None, region: str | None, folder: Path, tokenizer_only: bool = False
) -> Checkpoint:
    """A checkpoint by its URI. `folder` must be empty or absent.

    Raises: CheckpointInvalid when it is none, or of a kind that is refused.
    """
    commit = None
    if uri.startswith("hf://"):
        where, commit, names = hub.fetch_snapshot(uri, field=field)
    elif uri.startswith("file://"):
        where = path_of_uri(uri)
        with reading(f"{field}: {uri}", CheckpointInvalid):
            if not where.is_dir():
                raise CheckpointInvalid(
                    f"{field}: {uri} does not exist; expected a folder with config.json and weights"
                )
            names = [item.name for item in where.iterdir()]
    else:
        where, names = folder, _fetch_prefix(uri, field, endpoint_url, region, folder)
    _check_files(uri, field, names, tokenizer_only=tokenizer_only)
    with reading(f"{field}: {uri}", CheckpointInvalid):
        checkpoint = _described(uri, field, where, commit)
    if not tokenizer_only:
        _check_config(checkpoint)
    return checkpoint


def fetch_committed(store: Store, manifest: Manifest, *, field: str, folder: Path) -> Checkpoint:
    """A committed stage's checkpoint, every file checked against its manifest.

    Raises: CheckpointCorrupt naming the object.
    """
    for entry in manifest.files:
        if entry.path.endswith(WANTED):
            download_file(store, manifest, entry, folder)
    return _described(manifest.checkpoint, field, folder, None)


def _fetch_prefix(uri: str, field: str, endpoint_url: str | None, region: str | None, folder: Path) -> list[str]:
    store = open_store(uri, endpoint_url=endpoint_url, region=region, field=field)
    names = [item.key for item in store.list_objects("") if "/" not in item.key]
    if not names:
        raise CheckpointInvalid(f"{field}: {uri} holds no files; expected config.json and safetensors weights")
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        if name.endswith(WANTED):
            store.download(name, folder / name)
    return names


def _check_files(uri: str, field: str, names: list[str], *, tokenizer_only: bool) -> None:
    if not any(name in TOKENIZERS for name in names):
        raise CheckpointInvalid(
            f"{field}: {uri} has no tokenizer; put the tokenizer.json (or vocab.txt) it was trained with beside it"
        )
    if tokenizer_only:
        return
    if "config.json" not in names:
        raise CheckpointInvalid(f"{field}: {uri} has no config.json; expected a checkpoint in Hugging Face format")
    if not any(name.endswith(".safetensors") for name in names):
        pickles = [name for name in names if name.endswith(PICKLES)]
        if pickles:
            raise CheckpointInvalid(
                f"{field}: {uri} has only pickled weights ({pickles[0]}), which can run code when loaded; "
                "save it with save_pretrained(safe_serialization=True) or name a revision with safetensors"
            )
        raise CheckpointInvalid(f"{field}: {uri} has no weights; expected model.safetensors")


def _check_config(checkpoint: Checkpoint) -> None:
    """Refuses architectures that neither transformers nor this trainer knows, remote code above all."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    from distillchain_trainer.models import bert_hash

    bert_hash.register()
    config = checkpoint.config()
    kind = config.get("model_type")
    if kind in CONFIG_MAPPING:
        return
    if "auto_map" in config:
        raise CheckpointInvalid(
            f"{checkpoint.field}: {checkpoint.uri} wants to run code of its own (auto_map in config.json), which is "
            "never done; use an architecture of transformers or bert_hash"
        )
    raise CheckpointInvalid(
        f"{checkpoint.field}: {checkpoint.uri} is of model_type {json.dumps(kind)}, which is not known here; "
        "use an architecture of transformers or bert_hash"
    )


def _described(uri: str, field: str, folder: Path, commit: str | None) -> Checkpoint:
    weights, rest = {}, {}
    for path in sorted(folder.iterdir()):
        if path.name.endswith(".safetensors"):
            weights[path.name] = fingerprint_of(path)
        elif path.name.endswith(WANTED) and not path.name.startswith("predictions"):
            rest[path.name] = fingerprint_of(path).sha256
    sha_of_weights = sha256_of({name: print_.sha256 for name, print_ in weights.items()})
    return Checkpoint(
        uri=uri,
        field=field,
        folder=folder,
        revision=commit or f"sha256:{sha_of_weights}",
        digest=sha256_of({"weights": sha_of_weights, "rest": rest}),
        weight_bytes=sum(print_.size_bytes for print_ in weights.values()),
    )


def _json(path: Path, checkpoint: Checkpoint) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointInvalid(f"{checkpoint.field}: {checkpoint.uri}/{path.name} is not JSON ({error})") from error
    if not isinstance(value, dict):
        raise CheckpointInvalid(f"{checkpoint.field}: {checkpoint.uri}/{path.name} is not a JSON object")
    return value


def forget(folder: Path) -> None:
    """Frees the disk of files that are loaded and no longer needed."""
    shutil.rmtree(folder, ignore_errors=True)
