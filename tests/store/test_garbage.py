"""What nothing in a store needs, in a folder and on a real S3 server."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path
from typing import Any

import pytest

from cluster.s3 import REGION, S3Server
from distillchain_api.layout import (
    attempt_prefix,
    export_prefix,
    export_record_key,
    manifest_key,
    pass_manifest_key,
    pass_prefix,
)
from distillchain_api.wire.export import ExportRecord, MeasuredFormat
from distillchain_api.wire.manifest import FileEntry
from distillchain_store import commit
from distillchain_store.discarding import discard_commits
from distillchain_store.folder import PART_MARK, FileStore
from distillchain_store.garbage import Found, Garbage, delete_garbage, find_garbage
from distillchain_store.passes import commit_pass
from distillchain_store.s3.store import S3Store
from distillchain_store.store import Store
from store.parts import DIGEST, a_manifest, a_pass, use_keys

OTHER = "e" * 64
FILES = {"checkpoint/weights": b"w" * 100, "results/history.jsonl": b"{}"}


def put_commit(store: Store, attempt: str = "first") -> set[str]:
    """A committed stage. Returns: the keys that belong to it."""
    prefix = attempt_prefix(DIGEST, attempt)
    for path, content in FILES.items():
        store.write(f"{prefix}/{path}", content)
    commit.commit(store, a_manifest(attempt, files=FILES))
    return {manifest_key(DIGEST), *(f"{prefix}/{path}" for path in FILES)}


def put(store: Store, *keys: str) -> set[str]:
    for key in keys:
        store.write(key, b"left behind")
    return set(keys)


def put_export(store: Store, attempt: str, *, weights: str, name: str = "onnx") -> set[str]:
    """A finished export. Returns: its keys."""
    key = f"{export_prefix(DIGEST, attempt)}/model.onnx"
    store.write(key, b"onnx")
    formats = [
        MeasuredFormat(format="pytorch", size_bytes=1, validation={"accuracy": 0.9}, examples_per_second=1),
        MeasuredFormat(format="onnx", path="model.onnx", size_bytes=4, validation={"accuracy": 0.9}, examples_per_second=1),
    ]  # fmt: skip
    record = ExportRecord(
        digest=DIGEST,
        weights=weights,
        attempt=attempt,
        files=[FileEntry(path="model.onnx", size_bytes=4, sha256="0" * 64)],
        formats=formats,
        environment={},
        created_at="2026-01-01T12:00:00Z",
    )
    store.write(export_record_key(DIGEST, name), record.to_json().encode())
    return {key, export_record_key(DIGEST, name)}


def find(store: Store, **options: Any) -> Found:
    """Everything counts as old."""
    return find_garbage(store, written_before_s=time.time() + 3600, **options)


def delete(store: Store, garbage: Garbage) -> bool:
    """As `find` does: a stage that was discarded may go at once."""
    return delete_garbage(store, garbage, written_before_s=time.time() + 3600)


def keys(found: Found) -> set[str]:
    return {item.key for garbage in found.garbage for item in garbage.objects}


def test_only_what_nothing_needs_is_found_and_deleted(store: Store):
    needed = put_commit(store)
    needed |= put_export(store, "x1", weights="sha256:0")
    needed |= put(
        store, f"stages/{DIGEST}/report.html", f"stages/{DIGEST}/traces/first-rank-0.json.gz", "notes/mine.txt"
    )
    needed |= put(store, f"logits/{DIGEST}/part.safetensors", f"stages/{OTHER}/resume/5/index.json")
    garbage = put(
        store,
        f"{attempt_prefix(DIGEST, 'second')}/checkpoint/weights",
        f"{attempt_prefix(DIGEST, 'first')}/store-check",
        f"stages/{DIGEST}/resume/10/index.json",
        f"{export_prefix(DIGEST, 'x0')}/model.onnx",
        f"{attempt_prefix(OTHER, 'killed')}/checkpoint/weights",
    )

    found = find(store)

    assert keys(found) == garbage
    assert all(delete(store, each) for each in found.garbage)
    assert {item.key for item in store.list_objects("")} == needed
    assert find(store).garbage == []


def test_an_export_of_other_weights_is_garbage(store: Store):
    needed = put_commit(store)
    old = put_export(store, "x1", weights="sha256:other")
    needed |= put_export(store, "x2", weights="sha256:0", name="onnx-int8")

    assert keys(find(store)) == old


def test_a_stage_that_was_written_to_lately_may_be_running(store: Store):
    put_commit(store)
    put(store, f"{attempt_prefix(DIGEST, 'second')}/checkpoint/weights", f"{attempt_prefix(OTHER, 'a')}/weights")

    found = find_garbage(store, written_before_s=time.time() - 3600)

    assert found.garbage == []
    assert sorted(found.kept) == [
        f"stage {digest[:12]} was written to recently, so it may be running" for digest in (DIGEST, OTHER)
    ]


def test_one_recent_object_protects_a_stage_whose_others_are_old(tmp_path: Path):
    store = FileStore(f"file://{tmp_path}")
    put(store, f"{attempt_prefix(OTHER, 'old')}/weights", f"stages/{OTHER}/resume/10/index.json")
    (path,) = tmp_path.rglob("weights")
    os.utime(path, (1, 1))

    assert find_garbage(store, written_before_s=time.time() - 60).garbage == []


@pytest.mark.parametrize(("needed", "is_garbage"), [(None, False), ({OTHER}, False), (set(), True), ({DIGEST}, True)])
def test_saved_states_are_garbage_only_for_stages_that_no_chain_has(
    tmp_path: Path, needed: set[str] | None, is_garbage: bool
):
    store = FileStore(f"file://{tmp_path}")
    state = put(store, f"stages/{OTHER}/resume/10/index.json", f"stages/{OTHER}/resume/10/weights")

    assert keys(find(store, needed_stages=needed)) == (state if is_garbage else set())


def test_outputs_of_teachers_are_garbage_on_request(store: Store):
    logits = put(store, f"logits/{OTHER}/a.safetensors", f"logits/{OTHER}/b.safetensors")

    assert keys(find(store, with_logits=True)) == logits
    assert {item.key for item in find(store).logits} == logits


def test_outputs_that_a_pass_has_promised_are_kept(store: Store):
    put(store, f"logits/{OTHER}/a.safetensors")
    unneeded = put(store, f"logits/{DIGEST}/a.safetensors")
    store.write(f"passes/{DIGEST}/manifest.json", b'{"contract": 1, "logits": "' + OTHER.encode() + b'"}')

    found = find(store, with_logits=True)

    assert keys(found) == unneeded
    assert "the pass of a teacher" in found.kept[0]


def test_a_manifest_that_cannot_be_read_protects_its_stage(store: Store):
    put_commit(store)
    put(store, f"{attempt_prefix(DIGEST, 'second')}/weights")
    store.write(manifest_key(DIGEST), b"{")

    found = find(store)

    assert found.garbage == []
    assert "cannot be read" in found.kept[0]


def test_an_attempt_that_was_committed_after_all_is_not_deleted(store: Store):
    put(store, f"{attempt_prefix(DIGEST, 'first')}/checkpoint/weights")
    found = find(store)
    needed = put_commit(store)

    assert not delete(store, found.garbage[0])
    assert {item.key for item in store.list_objects("")} == needed


def put_pass(store: Store, folder: Path) -> set[str]:
    """A committed pass. Returns: the keys that belong to it."""
    folder.mkdir()
    (folder / "outputs").write_bytes(b"x")
    commit_pass(store, a_pass(), folder)
    return {pass_manifest_key(DIGEST), f"{pass_prefix(DIGEST, 'first')}/outputs"}


def test_attempts_of_passes_are_garbage_as_those_of_stages(store: Store, tmp_path: Path):
    needed = put_pass(store, tmp_path / "attempt")
    garbage = put(
        store,
        f"{pass_prefix(DIGEST, 'second')}/outputs",
        f"{pass_prefix(DIGEST, 'first')}/other",
        f"{pass_prefix(OTHER, 'killed')}/outputs",
    )

    lately = find_garbage(store, written_before_s=time.time() - 3600)
    found = find(store)

    assert (lately.garbage, keys(found)) == ([], garbage)
    assert lately.kept[0] == f"pass {DIGEST[:12]} was written to recently, so it may be running"
    assert all(delete(store, each) for each in found.garbage)
    assert {item.key for item in store.list_objects("")} == needed


def test_an_attempt_at_a_pass_that_was_committed_or_discarded_since_is_not_deleted(tmp_path: Path):
    store = FileStore(f"file://{tmp_path}/store")
    put(store, f"{pass_prefix(DIGEST, 'first')}/outputs")
    os.utime(tmp_path / f"store/{pass_prefix(DIGEST, 'first')}/outputs", (1, 1))
    (garbage,) = find_garbage(store, written_before_s=time.time() - 3600).garbage
    put_pass(store, tmp_path / "attempt")

    assert not delete(store, garbage)
    discard_commits(store, [pass_manifest_key(DIGEST)])
    assert not delete_garbage(store, garbage, written_before_s=time.time() - 3600)
    assert delete(store, garbage)


def test_the_manifest_of_a_pass_that_cannot_be_read_protects_its_attempts(store: Store):
    put(store, f"{pass_prefix(DIGEST, 'second')}/outputs")
    store.write(pass_manifest_key(DIGEST), b"{")

    found = find(store)

    assert found.garbage == []
    assert "cannot be read" in found.kept[0]


def put_old_commit(folder: Path) -> tuple[FileStore, set[str]]:
    """A stage that was committed long ago. Returns: also the keys that belong to it."""
    store = FileStore(f"file://{folder}")
    needed = put_commit(store)
    for key in needed:
        os.utime(folder / key, (1, 1))
    return store, needed


def test_a_stage_that_was_discarded_lately_may_be_restored(tmp_path: Path):
    store, needed = put_old_commit(tmp_path)
    (copy,) = discard_commits(store, [manifest_key(DIGEST)])

    found = find_garbage(store, written_before_s=time.time() - 3600)

    assert found.garbage == []
    assert found.kept == [f"stage {DIGEST[:12]} was discarded recently, so it may be restored"]
    os.utime(tmp_path / copy, (1, 1))
    later = find_garbage(store, written_before_s=time.time() - 3600)
    assert keys(later) == needed - {manifest_key(DIGEST)}
    assert all(delete_garbage(store, each, written_before_s=time.time() - 3600) for each in later.garbage)
    assert [item.key for item in store.list_objects("")] == [copy]


def test_a_stage_that_was_discarded_again_may_be_restored_again(tmp_path: Path):
    store, _ = put_old_commit(tmp_path)
    (copy,) = discard_commits(store, [manifest_key(DIGEST)])
    os.utime(tmp_path / copy, (1, 1))
    store.create(manifest_key(DIGEST), store.read(copy))  # restored, and the copy was left

    discard_commits(store, [manifest_key(DIGEST)])

    assert find_garbage(store, written_before_s=time.time() - 3600).garbage == []


def test_a_stage_that_was_discarded_since_is_not_deleted(tmp_path: Path):
    """Its manifest was read after it was moved, and the listing is from before."""
    store, needed = put_old_commit(tmp_path)
    content = store.read(manifest_key(DIGEST))
    store.delete([manifest_key(DIGEST)])
    (garbage,) = find_garbage(store, written_before_s=time.time() - 3600).garbage
    store.write(manifest_key(DIGEST), content)
    discard_commits(store, [manifest_key(DIGEST)])

    assert not delete_garbage(store, garbage, written_before_s=time.time() - 3600)
    assert needed - {manifest_key(DIGEST)} < {item.key for item in store.list_objects("")}


def test_outputs_of_a_pass_that_was_discarded_lately_are_kept(tmp_path: Path):
    store = FileStore(f"file://{tmp_path}")
    (part,) = put(store, f"logits/{OTHER}/a.safetensors")
    os.utime(tmp_path / part, (1, 1))
    store.write(f"passes/{DIGEST}/manifest.json", b'{"contract": 1, "logits": "' + OTHER.encode() + b'"}')
    (copy,) = discard_commits(store, [f"passes/{DIGEST}/manifest.json"])

    assert find_garbage(store, written_before_s=time.time() - 60, with_logits=True).garbage == []
    os.utime(tmp_path / copy, (1, 1))
    (garbage,) = find_garbage(store, written_before_s=time.time() - 60, with_logits=True).garbage
    assert keys(Found([garbage])) == {part}
    os.utime(tmp_path / copy)
    assert not delete_garbage(store, garbage, written_before_s=time.time() - 60)


def test_writes_that_never_ended(tmp_path: Path):
    store = FileStore(f"file://{tmp_path}")
    part = tmp_path / "stages" / DIGEST / "attempts" / "a" / f"weights{PART_MARK}{'0a' * 16}"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"half")

    (garbage,) = find(store).garbage

    assert (garbage.folder, garbage.size_bytes) == (f"stages/{DIGEST}/attempts/a/weights", 4)
    assert find_garbage(store, written_before_s=time.time() - 60).garbage == []
    delete(store, garbage)
    assert not part.exists()


def test_files_of_others_are_no_unfinished_writes(tmp_path: Path):
    store = FileStore(f"file://{tmp_path}")
    for path in ("rows/train.tsv.part-01", f"rows/train.tsv.part-{'0a' * 16}", f"stages/{DIGEST}/x.part-01"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(b"theirs")

    assert find(store).garbage == []


def test_a_folder_beside_the_stores_own_need_not_be_readable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As lost+found of a disk, or the data of others in the same bucket."""
    store, scandir = FileStore(f"file://{tmp_path}"), os.scandir
    garbage = put(store, f"{attempt_prefix(DIGEST, 'killed')}/weights")
    (tmp_path / "lost+found").mkdir()

    def refuse(path: Path) -> object:
        if Path(path).name == "lost+found":
            raise PermissionError(errno.EACCES, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert keys(find(store)) == garbage


def test_outputs_that_a_pass_still_adds_to_are_kept(tmp_path: Path):
    store = FileStore(f"file://{tmp_path}")
    put(store, f"logits/{OTHER}/old.safetensors", f"logits/{OTHER}/new.safetensors")
    os.utime(tmp_path / f"logits/{OTHER}/old.safetensors", (1, 1))

    assert find_garbage(store, written_before_s=time.time() - 60, with_logits=True).garbage == []


def test_outputs_that_a_pass_has_promised_since_are_not_deleted(store: Store):
    put(store, f"logits/{OTHER}/a.safetensors")
    (garbage,) = find(store, with_logits=True).garbage
    store.write(f"passes/{DIGEST}/manifest.json", b'{"contract": 1, "logits": "' + OTHER.encode() + b'"}')

    assert not delete(store, garbage)
    assert store.read(f"logits/{OTHER}/a.safetensors")


@pytest.mark.cluster
def test_uploads_that_never_ended(s3: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch):
    """The parts of an upload that a killed pod left behind: nothing lists them, and they are billed."""
    use_keys(monkeypatch, s3)
    store = S3Store(f"{bucket}/some/prefix", endpoint_url=s3.endpoint, region=REGION)
    outside = S3Store(bucket, endpoint_url=s3.endpoint, region=REGION)
    for each in (store, outside):
        client, place = each._current_connection().client, each._object("stages/weights")
        upload = client.create_multipart_upload(**place)["UploadId"]
        client.upload_part(**place, UploadId=upload, PartNumber=1, Body=b"x" * 1000)

    (write,) = store.list_unfinished("")

    assert write.key == "stages/weights"
    assert abs(write.started_s - time.time()) < 600
    store.abandon([write])
    store.abandon([write])  # somebody else did it
    assert store.list_unfinished("") == []
    assert len(outside.list_unfinished("")) == 1
