"""The commit of a teacher's pass."""

from __future__ import annotations

from pathlib import Path

import pytest

from distillchain_store.errors import StorageUnavailable
from distillchain_store.folder import FileStore
from distillchain_store.passes import commit_pass, read_pass
from distillchain_store.store import Fingerprint, fingerprint_of
from store.parts import DIGEST, a_pass


class Losing(FileStore):
    """Says that it has stored a file, and has not."""

    def upload(self, key: str, path: Path) -> Fingerprint:
        return fingerprint_of(path)


def test_a_pass_whose_files_did_not_arrive_is_not_committed(tmp_path: Path):
    (tmp_path / "attempt").mkdir()
    (tmp_path / "attempt" / "outputs").write_bytes(b"x")
    store = Losing(f"file://{tmp_path}/store")

    with pytest.raises(StorageUnavailable, match="did not arrive complete"):
        commit_pass(store, a_pass(), tmp_path / "attempt")

    assert read_pass(store, DIGEST) is None


def test_the_first_of_two_passes_holds_and_the_other_leaves_nothing(tmp_path: Path):
    (tmp_path / "attempt").mkdir()
    (tmp_path / "attempt" / "outputs").write_bytes(b"x")
    store = FileStore(f"file://{tmp_path}/store")
    commit_pass(store, a_pass(), tmp_path / "attempt")

    found = commit_pass(store, a_pass().model_copy(update={"attempt": "second"}), tmp_path / "attempt")

    assert found.attempt == "first"
    assert not [item.key for item in store.list_objects("") if "second" in item.key]
