"""Exports of committed stages: their records read, their files fetched."""

from __future__ import annotations

from pathlib import Path

from distillchain_api.faults import BadDocument
from distillchain_api.layout import export_prefix, export_record_key
from distillchain_api.wire.export import ExportRecord
from distillchain_api.wire.manifest import Manifest
from distillchain_store.errors import CheckpointCorrupt, ObjectMissing
from distillchain_store.store import Fingerprint, ReadableStore, Store

AGAIN = "the next run makes it again; on a cluster, delete the chain and apply it again: its stages are reused"


def read_export(store: ReadableStore, manifest: Manifest, name: str) -> ExportRecord | None:
    """The record of an export of the committed weights; None: there is none. Its files are not read.

    Args:
        name: see distillchain_api.resource.export.Export.
    Raises: CheckpointCorrupt when it cannot be read.
    """
    key = export_record_key(manifest.digest, name)
    try:
        record = ExportRecord.parse(store.read(key))
    except ObjectMissing:
        return None
    except (BadDocument, UnicodeDecodeError) as error:
        raise CheckpointCorrupt(f"{store.uri}/{key} cannot be read ({str(error).splitlines()[0]})") from error
    # The stage may have been committed again since, after its manifest was deleted.
    return record if record.weights == manifest.student.revision else None


def download_export(store: Store, record: ExportRecord, to: Path) -> None:
    """Fetches the files of an export into the folder `to`, each compared with the record.

    Raises: CheckpointCorrupt when one is gone or altered; DiskFull; other errors of the store.
    """
    for entry in record.files:
        key = f"{export_prefix(record.digest, record.attempt)}/{entry.path}"
        try:
            found = store.download(key, to / entry.path)
        except ObjectMissing as error:
            raise CheckpointCorrupt(f"{store.uri}/{key} is missing; {AGAIN}") from error
        if found != Fingerprint(entry.size_bytes, entry.sha256):
            raise CheckpointCorrupt(f"{store.uri}/{key} was altered: its sha256 is not the one in its record; {AGAIN}")
