"""Where a checkpoint comes from: a folder, S3, the hub or a committed stage. Knows files, not models."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distillchain_api.digests import sha256_of
from distillchain_api.layout import CHECKPOINT_FOLDER
from distillchain_api.wire.manifest import Manifest
from distillchain_store.opening import open_store
from distillchain_store.store import Store, fingerprint_of, path_of_uri
from distillchain_store.verified import download_file
from distillchain_trainer.errors import CheckpointInvalid, reading
from distillchain_trainer.input_cache import input_cache
from distillchain_trainer.models import hub
from distillchain_trainer.models.checkpoint_files import WANTED, Parts, check_contents, check_names, read_json
from distillchain_trainer.models.licenses import CARD_FILE, stated_license


@dataclass(frozen=True)
class Checkpoint:
    """The files of a checkpoint on this machine.

    Attributes:
        uri: what messages call it.
        field: the field of the spec that names it.
        revision: commit of the hub, else the sha256 over its weights.
        digest: sha256 over the files that are used: the same digest gives the same outputs.
        license: as its model card states it; empty: unknown.
    """

    uri: str
    field: str
    folder: Path
    revision: str
    digest: str
    weight_bytes: int
    license: str = ""

    def config(self) -> dict[str, Any]:
        """config.json."""
        return read_json(self.folder / "config.json", f"{self.field}: {self.uri}/config.json")


def fetch_checkpoint(
    uri: str, *, field: str, endpoint_url: str | None, region: str | None, folder: Path, parts: Parts = "all"
) -> Checkpoint:
    """A checkpoint by its URI, its files checked.

    Args:
        folder: where files of S3 go; empty or absent.
        parts: what is used of it. "weights": its tokenizer, if any, is not used.
    Raises: CheckpointInvalid; errors of the store and of the hub.
    """
    commit = None
    if uri.startswith("hf://"):

        def choose(names: list[str]) -> list[str]:
            check_names(names, uri=uri, field=field, parts=parts)  # before gigabytes are downloaded
            return [name for name in names if _is_fetched(name, parts)]

        where, commit, names = hub.fetch_snapshot(uri, field=field, choose=choose)
    elif uri.startswith("file://"):
        where = path_of_uri(uri)
        names = _names_in(where, uri, field)
        check_names(names, uri=uri, field=field, parts=parts)
    else:
        where, names = folder, _fetch_prefix(uri, field, endpoint_url, region, folder, parts)
    with reading(f"{field}: {uri}", CheckpointInvalid):
        check_contents(where, names, uri=uri, field=field, parts=parts)
        return _described(uri, field, where, commit, parts)


def fetch_committed(store: Store, manifest: Manifest, *, field: str, folder: Path) -> Checkpoint:
    """A committed stage's checkpoint, every file checked against its manifest.

    Raises: CheckpointCorrupt naming the object.
    """
    # A folder is as near as the cache is.
    cache = None if store.uri.startswith("file://") else input_cache()
    for entry in manifest.checkpoint_files:
        # Older releases kept predictions, examples and history beside the model.
        if entry.path.endswith(WANTED):
            download_file(store, manifest, entry, folder, cache=cache)
    where = folder / CHECKPOINT_FOLDER if manifest.has_folders else folder
    return _described(manifest.checkpoint, field, where, None, "all")


def _names_in(folder: Path, uri: str, field: str) -> list[str]:
    with reading(f"{field}: {uri}", CheckpointInvalid):
        if folder.is_file():
            raise CheckpointInvalid(f"{field}: {uri} is a file; name the folder that holds config.json and weights")
        if not folder.is_dir():
            raise CheckpointInvalid(f"{field}: {uri} does not exist; expected a folder with config.json and weights")
        return [item.name for item in folder.iterdir()]


def _fetch_prefix(
    uri: str, field: str, endpoint_url: str | None, region: str | None, folder: Path, parts: Parts
) -> list[str]:
    store = open_store(uri, endpoint_url=endpoint_url, region=region, field=field, cache=input_cache())
    # The top folder alone: others, such as onnx/, hold the same weights in other formats.
    names = [item.key for item in store.list_objects("") if "/" not in item.key]
    # S3 has no folders: a wrong name only shows in a listing without objects.
    if not names:
        raise CheckpointInvalid(f"{field}: {uri} holds no files; expected config.json and safetensors weights")
    check_names(names, uri=uri, field=field, parts=parts)  # before gigabytes are downloaded
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        if _is_fetched(name, parts):
            store.download(name, folder / name)
    return names


def _is_fetched(name: str, parts: Parts) -> bool:
    """Whether a file of S3 or the hub is downloaded; of the others, only the model card, for its license."""
    return name == CARD_FILE or (name.endswith(WANTED) and _is_used(name, parts))


def _is_used(name: str, parts: Parts) -> bool:
    """Whether a file matters: the weights do not where only the tokenizer is used."""
    return parts != "tokenizer" or not name.endswith(".safetensors")


def digest_of_committed(manifest: Manifest) -> str:
    """`Checkpoint.digest` of a committed stage, from its manifest alone."""
    names = {Path(entry.path).name: entry.sha256 for entry in manifest.checkpoint_files if entry.path.endswith(WANTED)}
    return _digests_of(names)[1]


def _digests_of(files: Mapping[str, str]) -> tuple[str, str]:
    """sha256 over the weights, and over all files that are used, given the sha256 of each by its name."""
    # Apart, because a revision is that of the weights alone.
    weights = {name: sha256 for name, sha256 in files.items() if name.endswith(".safetensors")}
    rest = {name: sha256 for name, sha256 in files.items() if name not in weights and _decides(name)}
    sha_of_weights = sha256_of(weights)
    return sha_of_weights, sha256_of({"weights": sha_of_weights, "rest": rest})


def _decides(name: str) -> bool:
    """Whether a file beside the weights can change what the model answers."""
    return name.endswith(WANTED) and not name.startswith("predictions")


def _described(uri: str, field: str, folder: Path, commit: str | None, parts: Parts) -> Checkpoint:
    used = {
        path.name: fingerprint_of(path)
        for path in sorted(folder.iterdir())
        if _is_used(path.name, parts) and (path.name.endswith(".safetensors") or _decides(path.name))
    }
    sha_of_weights, digest = _digests_of({name: print_.sha256 for name, print_ in used.items()})
    return Checkpoint(
        uri=uri,
        field=field,
        folder=folder,
        revision=commit or f"sha256:{sha_of_weights}",
        digest=digest,
        weight_bytes=sum(print_.size_bytes for name, print_ in used.items() if name.endswith(".safetensors")),
        license=stated_license(folder),
    )


def forget(folder: Path) -> None:
    """Frees the disk of files that are loaded and no longer needed."""
    # A teacher from the hub's cache or from a local folder has no files here.
    shutil.rmtree(folder, ignore_errors=True)
