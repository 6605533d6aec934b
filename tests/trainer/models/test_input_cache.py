"""The cache of models and data that the stages of a node share: what one stage has fetched, the next one does not."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from cluster.s3 import S3Server
from distillchain_api.wire.work_order import CACHE_BYTES_ENV, CACHE_ENV
from distillchain_trainer.errors import WorkOrderInvalid
from distillchain_trainer.input_cache import input_cache
from distillchain_trainer.models.checkpoints import Checkpoint, fetch_checkpoint
from hub_server import Hub, serve_hub
from store.gateway import Gateway
from store.parts import use_keys
from trainer.parts import an_order, run_here, save_bert

pytestmark = pytest.mark.models


@pytest.mark.cluster
def test_a_second_stage_fetches_neither_data_nor_models_again(
    root: Path, s3: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch
):
    save_bert(root / "encoder", labels=None, seed=5)
    client = s3.client()
    for folder in ("data", "teacher", "encoder"):
        for path in (root / folder).iterdir():
            client.upload_file(str(path), bucket[5:], f"in/{folder}/{path.name}")
    use_keys(monkeypatch, s3)
    monkeypatch.setenv(CACHE_ENV, str(root / "cache"))
    student = {"model": f"{bucket}/in/encoder"}
    with Gateway(s3.endpoint, lambda request, forward: forward(request)) as gateway:
        downloads: list[list[str]] = []
        # The third run is the second stage with another seed, so it has the same teacher.
        for stage, seed in ((0, 42), (1, 42), (1, 43)):
            order = an_order(
                root,
                stage=stage,
                storage={"uri": f"{bucket}/out", "endpointUrl": gateway.endpoint},
                dataset={"uri": f"{bucket}/in/data"},
                teacher={"model": f"{bucket}/in/teacher"},
                stages=[
                    {"name": "one", "student": student, "training": {"epochs": 6}},
                    {"name": "two", "student": student, "training": {"seed": seed}},
                ],
            )
            gateway.requests.clear()
            run_here(order, root, attempt=f"{stage}-{seed}")
            downloads.append([request.key for request in gateway.requests if request.method == "GET" and request.key])

    inputs = [[key for key in keys if key.startswith("in/")] for keys in downloads]
    models = [[key for key in keys if key.endswith("model.safetensors")] for keys in downloads]
    assert {"in/data/train.tsv", "in/data/dev.tsv", "in/teacher/model.safetensors"} <= set(inputs[0])
    assert inputs[1:] == [[], []]
    assert [len(keys) for keys in models] == [2, 1, 0], "the committed teacher of the second stage is fetched once"


def fetch_from_hub(folder: Path) -> Checkpoint:
    return fetch_checkpoint(
        "hf://org/teacher", field="spec.teacher.model", endpoint_url=None, region=None, folder=folder / "unused"
    )


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with org/teacher, used by the client of this process, and a cache."""
    save_bert(tmp_path / "hub/models/org/teacher")
    monkeypatch.setenv(CACHE_ENV, str(tmp_path / "cache"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with serve_hub(tmp_path / "hub") as served:
        template = served.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", served.url)
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf"))
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        huggingface_hub.close_session()
        yield served
        huggingface_hub.close_session()


def downloads_of(hub: Hub) -> list[str]:
    found = [line.rpartition("/")[2] for line in hub.requests if line.startswith("GET") and "/resolve/" in line]
    hub.requests.clear()
    return sorted(found)


def test_a_checkpoint_of_the_hub_is_downloaded_once(hub: Hub, tmp_path: Path):
    first = fetch_from_hub(tmp_path)
    assert "model.safetensors" in downloads_of(hub)

    assert fetch_from_hub(tmp_path) == first

    assert downloads_of(hub) == []


def test_an_altered_file_of_the_hub_is_downloaded_again(hub: Hub, tmp_path: Path):
    first = fetch_from_hub(tmp_path)
    weights = (first.folder / "model.safetensors").resolve()
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    downloads_of(hub)

    again = fetch_from_hub(tmp_path)

    assert downloads_of(hub) == ["model.safetensors"]
    assert again == first


def test_a_checkpoint_of_the_hub_is_fetched_although_the_cache_is_full(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    real = huggingface_hub.snapshot_download

    def snapshot_download(*names: str, cache_dir: Path | None = None, **more: Any) -> str:
        if cache_dir is not None:
            raise OSError(errno.ENOSPC, "No space left on device")
        return str(real(*names, **more))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)

    assert (fetch_from_hub(tmp_path).folder / "model.safetensors").exists()

    cache = input_cache()
    assert cache is not None
    (fault,) = cache.faults
    assert "cannot be written (No space left on device)" in fault


def test_a_checkpoint_of_the_hub_is_fetched_although_the_cache_cannot_be_written(hub: Hub, tmp_path: Path):
    (tmp_path / "cache").write_text("a file in the place of the folder")

    assert (fetch_from_hub(tmp_path).folder / "model.safetensors").exists()

    cache = input_cache()
    assert cache is not None
    assert ["cannot be written (the folder hub cannot be created)" in fault for fault in cache.faults] == [True]


@pytest.mark.cluster
def test_a_cache_that_cannot_be_written_is_a_warning_of_the_stage(
    root: Path, s3: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch
):
    s3.client().upload_file(str(root / "data/train.tsv"), bucket[5:], "in/train.tsv")
    s3.client().upload_file(str(root / "data/dev.tsv"), bucket[5:], "in/dev.tsv")
    use_keys(monkeypatch, s3)
    (root / "cache").write_text("a file in the place of the folder")
    monkeypatch.setenv(CACHE_ENV, str(root / "cache"))
    endpoint = {"endpointUrl": s3.endpoint}
    order = an_order(root, storage={"uri": f"{bucket}/out", **endpoint}, dataset={"uri": f"{bucket}/in"})

    answer = run_here(order, root)

    assert [warning for warning in answer.warnings if f"the cache {root}/cache cannot be written" in warning]


@pytest.mark.parametrize("size", ["0", "-1", "10Gi"])
def test_a_size_that_is_no_number_of_bytes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: str):
    monkeypatch.setenv(CACHE_ENV, str(tmp_path))
    monkeypatch.setenv(CACHE_BYTES_ENV, size)

    with pytest.raises(WorkOrderInvalid, match=CACHE_BYTES_ENV):
        input_cache()
