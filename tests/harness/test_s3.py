"""The S3 server: credentials, conditions, an outage."""

from __future__ import annotations

import os

import boto3
import pytest
from botocore.exceptions import ClientError

from cluster.s3 import S3Server


@pytest.mark.cluster
@pytest.mark.parametrize(
    ("access_key", "secret_key", "want_code"),
    [
        pytest.param("distillchain", "wrong", "SignatureDoesNotMatch", id="right key, wrong secret"),
        pytest.param("nobody", "only-for-tests", "InvalidAccessKeyId", id="unknown key"),
    ],
)
def test_s3_refuses_wrong_credentials(
    s3: S3Server, bucket: str, access_key: str, secret_key: str, want_code: str
) -> None:
    client = boto3.client(
        "s3",
        endpoint_url=s3.endpoint,
        region_name="us-east-1",
        aws_access_key_id=access_key,
        aws_secret_access_key=secret_key,
    )

    with pytest.raises(ClientError) as refused:
        client.put_object(Bucket=bucket.removeprefix("s3://"), Key="x", Body=b"")

    assert refused.value.response["Error"]["Code"] == want_code


@pytest.mark.cluster
def test_s3_does_not_make_a_bucket_that_nobody_asked_for(s3: S3Server) -> None:
    with pytest.raises(ClientError, match="NoSuchBucket"):
        s3.client().put_object(Bucket="never-made", Key="x", Body=b"")


@pytest.mark.cluster
def test_a_conditional_put_and_a_conditional_multipart_upload_never_overwrite(s3: S3Server, bucket: str) -> None:
    client, name = s3.client(), bucket.removeprefix("s3://")
    client.put_object(Bucket=name, Key="manifest", Body=b"first", IfNoneMatch="*")

    with pytest.raises(ClientError) as second_put:
        client.put_object(Bucket=name, Key="manifest", Body=b"second", IfNoneMatch="*")
    upload = client.create_multipart_upload(Bucket=name, Key="manifest")["UploadId"]
    part = client.upload_part(Bucket=name, Key="manifest", UploadId=upload, PartNumber=1, Body=b"third")
    with pytest.raises(ClientError) as multipart:
        client.complete_multipart_upload(
            Bucket=name,
            Key="manifest",
            UploadId=upload,
            MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]},
            IfNoneMatch="*",
        )

    for refused in (second_put, multipart):
        assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == 412
    assert client.get_object(Bucket=name, Key="manifest")["Body"].read() == b"first"


@pytest.mark.cluster
def test_s3_keeps_objects_and_endpoint_over_an_outage(s3: S3Server, bucket: str) -> None:
    client, name, endpoint = s3.client(), bucket.removeprefix("s3://"), s3.endpoint
    content = os.urandom(5 << 20)  # more than one chunk of SeaweedFS
    client.put_object(Bucket=name, Key="weights", Body=content)

    s3.stop()
    s3.start()

    assert s3.endpoint == endpoint
    assert client.get_object(Bucket=name, Key="weights")["Body"].read() == content
