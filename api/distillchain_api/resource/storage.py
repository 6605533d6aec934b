"""Where a chain keeps what it makes."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from distillchain_api.base import Document
from distillchain_api.cel import cel, fault, rules
from distillchain_api.faults import Expect
from distillchain_api.resource.encryption import Encryption
from distillchain_api.values import (
    DNS_SUBDOMAIN,
    HTTP_ADDRESS,
    URI_RULE,
    StorageUri,
    Text,
    cel_same_folder,
    without_slash,
)

MAX_URL_CHARS = 1000


class SecretRef(Document):
    """A Secret in the chain's namespace with AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and perhaps AWS_SESSION_TOKEN."""

    name: Annotated[
        str,
        Field(min_length=1, max_length=253, pattern=DNS_SUBDOMAIN),
        Expect(
            "the name of a Secret: 1 to 253 lowercase letters, digits, '-' and '.', each part between letters or digits"
        ),
    ]
    """Name of the Secret."""


ENCRYPTION_OF_FILES = "expected nothing with file://, whose volume decides; remove it"


class Storage(Document):
    """Where checkpoints, teacher logits and resumable state are kept."""

    uri: Annotated[
        StorageUri,
        Field(
            json_schema_extra=rules(
                URI_RULE,
                cel(cel_same_folder(), "storage.uri is immutable: checkpoints do not move; create a new chain"),
            )
        ),
    ]
    """s3://bucket/prefix, or file:///path on a volume that every stage mounts. Immutable."""
    endpoint_url: (
        Annotated[
            str,
            Field(pattern=f"^{HTTP_ADDRESS}$", max_length=MAX_URL_CHARS),
            AfterValidator(without_slash),
            Expect("http(s)://host[:port] without user or password", "credentials belong into secretRef"),
        ]
        | None
    ) = None
    """Endpoint of an S3-compatible store; empty for AWS. Immutable."""
    region: Text | None = None
    """Region of the bucket; empty: the region of the environment."""
    encryption: Encryption | None = None
    """Encryption of what is written to s3://; empty: as the bucket is configured. In no digest."""
    secret_ref: SecretRef | None = None
    """Credentials; empty: the pod's service account (IRSA, workload identity)."""

    @model_validator(mode="after")
    def _encryption_is_of_s3(self) -> Self:
        if self.encryption and not self.uri.startswith("s3://"):
            raise fault("encryption", ENCRYPTION_OF_FILES)
        return self

    model_config = {
        "json_schema_extra": rules(
            cel(
                "has(self.endpointUrl) == has(oldSelf.endpointUrl) && "
                f"(!has(self.endpointUrl) || {cel_same_folder('.endpointUrl')})",
                "storage.endpointUrl is immutable: checkpoints do not move; create a new chain",
            ),
            cel(
                "!has(self.encryption) || self.uri.startsWith('s3://')",
                f"encryption: {ENCRYPTION_OF_FILES}",
                fieldPath=".encryption",
            ),
        )
    }
