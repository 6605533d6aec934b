"""Stages that are trained with a store on a real S3 server."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.s3 import REGION, S3Server
from distillchain_api.wire.answer import Committed, Failed
from distillchain_store.s3.store import S3Store
from distillchain_trainer.signals import Signals
from store.parts import use_keys
from trainer.parts import Rival, an_order, answer_in, start_process

pytestmark = [pytest.mark.models, pytest.mark.cluster]


def test_a_missing_right_to_write_is_reported_before_any_work(root: Path, s3: S3Server, bucket: str):
    order = an_order(root, storage={"uri": f"{bucket}/out", "endpointUrl": s3.endpoint})
    keys = {"AWS_ACCESS_KEY_ID": s3.reader_key, "AWS_SECRET_ACCESS_KEY": s3.secret_key, "AWS_REGION": REGION}

    process = start_process(order, root, **keys)
    stdout, stderr = process.communicate(timeout=60)

    assert process.returncode == 69, stderr
    failed = answer_in(root)
    assert isinstance(failed, Failed)
    assert failed.message.startswith(f"spec.storage: {s3.endpoint} refused {bucket}/out (AccessDenied")
    assert "FetchTeacher" not in stdout
    assert "data read" not in stderr


def test_of_two_trainers_on_s3_one_commits_and_the_other_adopts(
    root: Path, s3: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch
):
    from distillchain_trainer.stage.run import run_stage

    use_keys(monkeypatch, s3)
    order = an_order(root, storage={"uri": f"{bucket}/race", "endpointUrl": s3.endpoint})
    (root / "work").mkdir()

    answer = run_stage(order, attempt="late", folder=root / "work", reporter=Rival(order, root), signals=Signals())

    assert (answer.attempt, answer.reused) == ("rival", True)
    store = S3Store(f"{bucket}/race", endpoint_url=s3.endpoint, region=REGION)
    keys = [item.key.removeprefix(f"stages/{order.digest}/") for item in store.list_objects("stages/")]
    assert {key.split("/")[1] for key in keys if key.startswith("attempts/")} == {"rival"}
    assert not [key for key in keys if key.startswith("resume/")]


def test_a_stage_is_trained_on_s3_and_a_damaged_object_is_named(root: Path, s3: S3Server, bucket: str):
    client = s3.client()
    for folder in ("data", "teacher"):
        for path in (root / folder).iterdir():
            client.upload_file(str(path), bucket[5:], f"in/{folder}/{path.name}")
    order = an_order(
        root,
        storage={"uri": f"{bucket}/out", "endpointUrl": s3.endpoint},
        dataset={"uri": f"{bucket}/in/data"},
        teacher={"model": f"{bucket}/in/teacher"},
    )
    keys = {name: value for name, value in s3.environment().items() if name != "AWS_ENDPOINT_URL_S3"}

    process = start_process(order, root, **keys)
    _, stderr = process.communicate(timeout=180)
    assert process.returncode == 0, stderr
    answer = answer_in(root)
    assert isinstance(answer, Committed)
    assert answer.checkpoint == f"{bucket}/out/stages/{order.digest}/attempts/{answer.attempt}/checkpoint"
    weights = f"{answer.checkpoint}/model.safetensors"
    client.put_object(Bucket=bucket[5:], Key=weights.removeprefix(f"{bucket}/"), Body=b"short")

    process = start_process(order, root, **keys)
    process.communicate(timeout=60)

    assert process.returncode == 66
    failed = answer_in(root)
    assert isinstance(failed, Failed)
    assert failed.message.startswith(f"{weights} has 5 bytes, its manifest lists ")
    assert not any(secret in failed.message + stderr for secret in (s3.secret_key,))
