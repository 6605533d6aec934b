"""Opens the store of a chain. S3 credentials are those of the user's environment."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from distillchain_api.resource.storage import Storage
from distillchain_cli.errors import RunFailed, require_extra

if TYPE_CHECKING:
    from distillchain_store.store import Store


def open_chain_store(storage: Storage) -> Store:
    """The store of `spec.storage`. Raises: MissingExtra without boto3; StageError when the store cannot be opened."""
    if storage.uri.startswith("s3://"):
        require_extra("cli", "boto3", purpose=f"reading {storage.uri}")
    from distillchain_store.opening import open_store

    return open_store(
        storage.uri,
        endpoint_url=storage.endpoint_url,
        region=storage.region,
        encryption=storage.encryption.put_fields if storage.encryption else None,
    )


def require_folder(uri: str) -> None:
    """Checks the folder of a chain that has run, or one that --storage names. Raises: RunFailed when it is not here."""
    if uri.startswith("file://") and not Path(uri.removeprefix("file://")).is_dir():
        raise RunFailed(
            f"{uri} does not exist on this machine; mount that volume here, or use --storage to name the folder"
        )
