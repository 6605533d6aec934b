"""Checkpoints on S3: only what is needed is downloaded, and messages name the object, not a local copy."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.s3 import REGION, S3Server
from distillchain_trainer.errors import CheckpointInvalid
from distillchain_trainer.models.checkpoint_files import Parts
from distillchain_trainer.models.checkpoints import Checkpoint, fetch_checkpoint
from store.parts import use_keys
from trainer.checkpoint_parts import LFS_POINTER, LORA, Edit, delete, shard, write
from trainer.parts import save_bert

pytestmark = [pytest.mark.models, pytest.mark.cluster]


def upload(folder: Path, s3: S3Server, bucket: str) -> str:
    client = s3.client()
    for path in folder.iterdir():
        client.upload_file(str(path), bucket[5:], f"models/teacher/{path.name}")
    return f"{bucket}/models/teacher"


def fetch(uri: str, s3: S3Server, folder: Path, *, parts: Parts = "all") -> Checkpoint:
    return fetch_checkpoint(
        uri, field="spec.teacher.model", endpoint_url=s3.endpoint, region=REGION, folder=folder / "local", parts=parts
    )


def test_a_checkpoint_has_the_same_digest_on_s3_and_in_a_folder(
    tmp_path: Path, s3: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch
):
    use_keys(monkeypatch, s3)
    folder = save_bert(tmp_path / "teacher")
    write("pytorch_model.bin", b"a pickle that is not downloaded")(folder)

    there = fetch(upload(folder, s3, bucket), s3, tmp_path)

    here = fetch_checkpoint(f"file://{folder}", field="f", endpoint_url=None, region=None, folder=tmp_path / "unused")
    assert (there.digest, there.revision, there.weight_bytes) == (here.digest, here.revision, here.weight_bytes)
    assert not (tmp_path / "local/pytorch_model.bin").exists()


def test_a_tokenizer_is_used_without_the_weights_beside_it(
    tmp_path: Path, s3: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch
):
    use_keys(monkeypatch, s3)
    folder = save_bert(tmp_path / "teacher")
    uri = upload(folder, s3, bucket)

    there = fetch(uri, s3, tmp_path, parts="tokenizer")

    assert not (tmp_path / "local/model.safetensors").exists()
    assert (tmp_path / "local/tokenizer.json").exists()
    save_bert(folder, seed=5)
    here = fetch_checkpoint(
        f"file://{folder}", field="f", endpoint_url=None, region=None, folder=tmp_path / "unused", parts="tokenizer"
    )
    assert here.digest == there.digest, "other weights beside it change nothing"


def without_a_shard(folder: Path) -> None:
    shard(folder)
    delete("model-00002-of-00005.safetensors")(folder)


@pytest.mark.parametrize(
    "spoil, want",
    [
        pytest.param(without_a_shard, "{t}/model-00002-of-00005.safetensors is missing, but {t}/model.safetensors.index.json lists it", id="a shard missing"),
        pytest.param(write("model.safetensors", LFS_POINTER), "{t}/model.safetensors is a Git LFS pointer", id="LFS pointer"),
    ],
)  # fmt: skip
def test_a_bad_file_is_named_by_its_uri(
    tmp_path: Path, s3: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch, spoil: Edit, want: str
):
    use_keys(monkeypatch, s3)
    folder = save_bert(tmp_path / "teacher")
    spoil(folder)
    uri = upload(folder, s3, bucket)

    with pytest.raises(CheckpointInvalid) as failure:
        fetch(uri, s3, tmp_path)

    assert str(failure.value).startswith(f"spec.teacher.model: {want.format(t=uri)}")
    assert str(tmp_path) not in str(failure.value)


def test_an_adapter_is_refused_before_anything_is_downloaded(
    tmp_path: Path, s3: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch
):
    use_keys(monkeypatch, s3)
    folder = save_bert(tmp_path / "teacher")
    LORA(folder)

    with pytest.raises(CheckpointInvalid, match=r"teacher has adapter_config\.json"):
        fetch(upload(folder, s3, bucket), s3, tmp_path)

    assert not (tmp_path / "local").exists()
