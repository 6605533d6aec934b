"""The encryption that a chain asks for is in every upload, as a server sees it."""

from __future__ import annotations

from pathlib import Path

import pytest

from chain_builders import a_plan
from cluster.s3 import REGION
from distillchain_api.resource.encryption import Encryption
from distillchain_api.resource.storage import Storage
from distillchain_cli.stores import open_chain_store
from distillchain_store.s3.store import PART_BYTES
from store.gateway import Answer, Forward, Gateway, Request

KEY = "arn:aws:kms:eu-west-1:111122223333:key/1234abcd"
PREFIX = "x-amz-server-side-encryption"


def accept(request: Request, _: Forward) -> Answer:
    """The answer of a server that takes every upload."""
    answers = {
        "uploads": "<InitiateMultipartUploadResult><UploadId>1</UploadId></InitiateMultipartUploadResult>",
        "uploadId": "<CompleteMultipartUploadResult><ETag>1</ETag></CompleteMultipartUploadResult>",
    }
    body = next((text for name, text in answers.items() if request.has_parameter(name)), "")
    return Answer(200, b"" if request.method == "PUT" else body.encode(), {"ETag": '"1"'})


@pytest.mark.parametrize(
    "encryption, want",
    [
        pytest.param(None, {}, id="as the bucket is configured"),
        pytest.param(Encryption(type="AES256"), {PREFIX: "AES256"}, id="keys of the store"),
        pytest.param(
            Encryption(type="aws:kms", key_id=KEY, bucket_key=True),
            {
                PREFIX: "aws:kms",
                f"{PREFIX}-aws-kms-key-id": KEY,
                f"{PREFIX}-bucket-key-enabled": "true",
            },
            id="a key of KMS",
        ),
    ],
)
def test_every_upload_asks_for_the_encryption_of_the_chain(
    encryption: Encryption | None, want: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "any")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "any")
    (tmp_path / "large").write_bytes(bytes(PART_BYTES + 1))
    with Gateway("http://127.0.0.1:9", accept) as gateway:
        storage = Storage(uri="s3://models/x", endpoint_url=gateway.endpoint, region=REGION, encryption=encryption)
        store = open_chain_store(storage)
        store.write("small", b"content")
        assert store.create("manifest", b"content")
        store.upload("large", tmp_path / "large")

    def headers(request: Request) -> dict[str, str]:
        return {name: value for name, value in request.headers.items() if name.startswith(PREFIX)}

    begins = [r for r in gateway.requests if r.has_parameter("uploads")]
    puts = [r for r in gateway.requests if r.method == "PUT" and not r.has_parameter("partNumber")]
    parts = [r for r in gateway.requests if r.has_parameter("partNumber")]
    assert [headers(request) for request in [*puts, *begins]] == [want] * 3
    # A part has the encryption of its upload; S3 refuses the header there.
    assert [headers(request) for request in parts] == [{}, {}]


def test_the_encryption_is_in_the_work_order_and_in_no_digest():
    plain, encrypted = (
        a_plan(storage={"uri": "s3://models/distill", **fields})
        for fields in ({}, {"encryption": {"type": "aws:kms", "keyId": KEY}})
    )
    assert "encryption" not in plain.stages[0].work_order.to_document()["storage"]
    want = {"type": "aws:kms", "keyId": KEY}
    assert encrypted.stages[0].work_order.to_document()["storage"]["encryption"] == want
    assert [stage.digest for stage in plain.stages] == [stage.digest for stage in encrypted.stages]
