"""`storage.encryption`: how S3 encrypts what a chain stores."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from distillchain_api.base import Document
from distillchain_api.cel import cel, fault, rules
from distillchain_api.faults import Expect, expected

KMS = ("aws:kms", "aws:kms:dsse")
ONLY_KMS = f"nothing unless type is {' or '.join(KMS)}"


class Encryption(Document):
    """Server-side encryption of every object that the chain writes. Reading needs no field, but the right to use the
    key."""

    type: Literal["AES256", "aws:kms", "aws:kms:dsse"]
    """AES256: keys of the store (SSE-S3). aws:kms: a key of AWS KMS (SSE-KMS). aws:kms:dsse: two layers with one."""
    key_id: (
        Annotated[
            str,
            Field(min_length=1, max_length=512, pattern=r"^[!-~]+$"),
            Expect("the ID, ARN or alias of a KMS key", "for example arn:aws:kms:eu-west-1:111122223333:key/1234abcd"),
        ]
        | None
    ) = None
    """ID, ARN or alias of the KMS key; empty: the key aws/s3 of the account."""
    bucket_key: bool | None = None
    """Whether S3 derives keys from one for the whole bucket, which makes far fewer requests to KMS; only with aws:kms.
    Empty: as the bucket is configured."""

    @model_validator(mode="after")
    def _fits_the_type(self) -> Self:
        if self.key_id is not None and self.type not in KMS:
            raise fault("keyId", expected(self.key_id, ONLY_KMS, "remove it"))
        if self.bucket_key is not None and self.type != "aws:kms":
            raise fault("bucketKey", expected(self.bucket_key, "nothing unless type is aws:kms", "remove it"))
        return self

    model_config = {
        "json_schema_extra": rules(
            cel(
                f"!has(self.keyId) || self.type in {list(KMS)}",
                f"keyId: expected {ONLY_KMS}; remove it",
                fieldPath=".keyId",
            ),
            cel(
                "!has(self.bucketKey) || self.type == 'aws:kms'",
                "bucketKey: expected nothing unless type is aws:kms; remove it",
                fieldPath=".bucketKey",
            ),
        )
    }

    @property
    def put_fields(self) -> dict[str, str | bool]:
        """The fields of S3's PutObject and CreateMultipartUpload."""
        stated = {"ServerSideEncryption": self.type, "SSEKMSKeyId": self.key_id, "BucketKeyEnabled": self.bucket_key}
        return {name: value for name, value in stated.items() if value is not None}
