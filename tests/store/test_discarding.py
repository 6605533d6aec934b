"""Withdrawing commits: the manifest is moved aside, nothing else is touched, and it may be repeated."""

from __future__ import annotations

from pathlib import Path

import pytest

from distillchain_store.discarding import discard_commits
from distillchain_store.errors import StorageDenied
from distillchain_store.opening import open_store

KEY = "stages/abc/manifest.json"


def test_a_manifest_is_moved_aside_and_its_files_stay(tmp_path: Path):
    store = open_store(f"file://{tmp_path}", endpoint_url=None, region=None)
    store.write(KEY, b"{}")
    store.write("stages/abc/attempts/a1/model.safetensors", b"weights")

    (copy,) = discard_commits(store, [KEY, "stages/def/manifest.json"])

    assert store.read(copy) == b"{}"
    assert copy.startswith("stages/abc/discarded/")
    assert [item.key for item in store.list_objects("")] == ["stages/abc/attempts/a1/model.safetensors", copy]
    assert discard_commits(store, [KEY]) == []


def test_a_discarded_commit_is_never_replaced_and_an_interrupted_call_may_be_repeated(tmp_path: Path):
    store = open_store(f"file://{tmp_path}", endpoint_url=None, region=None)
    store.write(KEY, b"{}")
    (copy,) = discard_commits(store, [KEY])
    store.write(KEY, b"{}")  # as if the call had ended before it deleted the manifest
    assert discard_commits(store, [KEY]) == [copy]

    store.write(KEY, b"{}")
    store.write(copy, b"another")
    with pytest.raises(StorageDenied, match="exists with another content"):
        discard_commits(store, [KEY])
    assert store.read(KEY) == b"{}"
