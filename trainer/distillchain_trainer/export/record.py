"""Records of exports in the store: found, verified, written."""

from __future__ import annotations

import logging
from pathlib import Path

from distillchain_api.layout import export_prefix
from distillchain_api.metrics import Metric, format_for_status
from distillchain_api.wire.export import ExportRecord, ExportSummary
from distillchain_api.wire.manifest import FileEntry, Manifest
from distillchain_store.errors import CheckpointCorrupt, ObjectMissing
from distillchain_store.exports import read_export
from distillchain_store.store import Fingerprint, Store, discard

log = logging.getLogger(__name__)


def find_export(store: Store, manifest: Manifest, name: str) -> ExportRecord | None:
    """The export of the committed weights, every file read; None if there is none that is whole."""
    try:
        record = read_export(store, manifest, name)
    except CheckpointCorrupt as error:
        log.warning("an export is made again: its record cannot be read", extra={"why": str(error)})
        return None
    if record is None:
        return None
    for entry in record.files:
        if _fingerprint(store, record, entry) != Fingerprint(entry.size_bytes, entry.sha256):
            log.warning("an export is made again: a file is not as it was stored", extra={"file": entry.path})
            return None
    return record


def _fingerprint(store: Store, record: ExportRecord, entry: FileEntry) -> Fingerprint | None:
    try:
        return store.fingerprint(f"{export_prefix(record.digest, record.attempt)}/{entry.path}")
    except ObjectMissing:
        return None


def upload_export(store: Store, digest: str, attempt: str, folder: Path) -> list[FileEntry]:
    """Stores all files of `folder`. If that fails, deletes what was stored."""
    prefix = export_prefix(digest, attempt)
    paths = sorted(path for path in folder.iterdir() if path.is_file())
    entries = []
    try:
        for path in paths:
            stored = store.upload(f"{prefix}/{path.name}", path)
            entries.append(FileEntry(path=path.name, size_bytes=stored.size_bytes, sha256=stored.sha256))
    except BaseException:
        # Also for a stop (StopRequested): nothing may stay that no record lists.
        discard(store, f"{prefix}/", [f"{prefix}/{path.name}" for path in paths])
        raise
    return entries


def discard_export(store: Store, record: ExportRecord) -> None:
    """Deletes the files of an export whose record was not written."""
    prefix = export_prefix(record.digest, record.attempt)
    discard(store, f"{prefix}/", [f"{prefix}/{entry.path}" for entry in record.files])


def summaries(store: Store, record: ExportRecord, metric: Metric) -> list[ExportSummary]:
    """What tables and status show of an export."""
    pytorch = next(found for found in record.formats if found.format == "pytorch")
    return [
        ExportSummary(
            format=found.format,
            uri=f"{store.uri}/{export_prefix(record.digest, record.attempt)}/{found.path}",
            size_bytes=found.size_bytes,
            metric=format_for_status(found.validation[metric.name], metric),
            examples_per_second=f"{found.examples_per_second:.1f}",
            pytorch_examples_per_second=f"{pytorch.examples_per_second:.1f}",
        )
        for found in record.formats
        if found.format != "pytorch"
    ]
