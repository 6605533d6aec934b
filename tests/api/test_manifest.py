"""The manifest: what a store holds is not trusted further than it must be."""

from __future__ import annotations

import pytest

from distillchain_api.faults import BadDocument
from distillchain_api.wire.manifest import FileEntry


@pytest.mark.parametrize("path", ["model.safetensors", "onnx/model.safetensors", "..hidden", "a..b/c"])
def test_a_path_within_the_folder_is_one(path: str):
    assert FileEntry.parse({"path": path, "sizeBytes": 1, "sha256": "0" * 64}).path == path


@pytest.mark.parametrize("path", ["", "/etc/passwd", "../up", "a/../../up", "a/./b", "a//b", "a/", ".", "..", "c:\\up"])
def test_a_path_that_leads_out_of_the_folder_is_refused(path: str):
    """A reader would write there before it could compare a checksum."""
    with pytest.raises(BadDocument, match="expected a path within the folder"):
        FileEntry.parse({"path": path, "sizeBytes": 1, "sha256": "0" * 64})
