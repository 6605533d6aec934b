"""A connection to an S3 server: a client with credentials, and the kind of checksum that the server accepts."""

from __future__ import annotations

import base64
import hashlib
import logging
import os
from collections.abc import Callable, Mapping
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeVar

import boto3
import botocore.exceptions as aws
import botocore.session
from botocore.config import Config

from distillchain_store.errors import StorageDenied
from distillchain_store.redaction import without_userinfo
from distillchain_store.s3.credentials import describe_source, read_credentials
from distillchain_store.s3.translation import wants_other_checksum
from distillchain_store.store import CHUNK_BYTES

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

log = logging.getLogger(__name__)

T = TypeVar("T")

METADATA_ATTEMPTS = 3  # a single attempt is lost where a node has just started


class Checksum(Enum):
    """What an upload carries besides the sha256 of its signature.

    NONE works with most servers. A bucket with Object Lock requires one of the others; older servers refuse CRC32.
    """

    NONE = "none"
    MD5 = "Content-MD5"
    CRC32 = "x-amz-checksum-crc32"


class Connection:
    """The client for one endpoint. Raises, from the constructor and from `renew`: StorageDenied, errors of botocore."""

    def __init__(
        self, endpoint_url: str | None, region: str | None, encryption: Mapping[str, str | bool] | None = None
    ) -> None:
        self._endpoint_url, self._region = endpoint_url, region
        self._encryption = encryption
        self.credentials = ""
        """Where they come from, for messages."""
        self._checksums = _checksums_to_try(botocore.session.get_session())
        self.client = self._connect()

    @property
    def endpoint(self) -> str:
        """The server's address, without credentials in it."""
        return without_userinfo(self.client.meta.endpoint_url)

    def renew(self) -> None:
        """Reads the credentials again, from wherever they came."""
        self.client = self._connect()

    def send(self, upload: Callable[[S3Client], T]) -> T:
        """Runs an upload. If the server refuses its kind of checksum, repeats it with the next kind, and remembers."""
        while True:
            try:
                return upload(self.client)
            except aws.ClientError as error:
                sent = self._checksums[0] is not Checksum.NONE
                # The last kind has nothing after it, so its refusal is the answer.
                if len(self._checksums) == 1 or not wants_other_checksum(error, sent=sent):
                    raise
                refused, *self._checksums = self._checksums
                log.info(
                    "the store refuses this kind of checksum; trying another",
                    extra={"refused": refused.value, "trying": self._checksums[0].value, "why": str(error)},
                )
                self.client = self._connect()

    def _connect(self) -> S3Client:
        session = botocore.session.get_session()
        try:
            if session.get_config_variable("metadata_service_num_attempts") == 1:  # boto3's own default
                session.set_config_variable("metadata_service_num_attempts", METADATA_ATTEMPTS)
            credentials = read_credentials(session)
            self.credentials = describe_source(credentials, profile=session.profile)
            client: S3Client = boto3.session.Session(botocore_session=session).client(
                "s3",
                endpoint_url=self._endpoint_url,
                region_name=self._region,
                config=_config(self._checksums[0]),
            )
        except ValueError as error:  # a malformed endpoint
            why = without_userinfo(str(error))
            raise StorageDenied(f"spec.storage: {why}; correct it or the environment's AWS configuration") from error
        # botocore has no setting for Content-MD5: request_checksum_calculation knows only the x-amz-checksum headers.
        if self._checksums[0] is Checksum.MD5:
            for operation in ("PutObject", "UploadPart"):
                client.meta.events.register(f"before-call.s3.{operation}", _add_content_md5)
        if self._encryption:
            fields = self._encryption

            def encrypt(params: dict[str, Any], **_: Any) -> None:
                params.update(fields)

            # The parts of a multipart upload have the encryption of its beginning.
            for operation in ("PutObject", "CreateMultipartUpload"):
                client.meta.events.register(f"before-parameter-build.s3.{operation}", encrypt)
        return client


def _config(checksum: Checksum) -> Config:
    return Config(
        # Timeouts are in seconds. A short one is enough to connect: `patience` decides how long to try.
        connect_timeout=5,
        read_timeout=60,
        # More than the 8 threads of a transfer or of a verification; botocore's default is 10.
        max_pool_connections=16,
        retries={"mode": "standard", "total_max_attempts": 2},  # waiting for longer is `patience`
        # botocore's default, when_supported, sends headers that older servers refuse (see Checksum).
        request_checksum_calculation="when_supported" if checksum is Checksum.CRC32 else "when_required",
        response_checksum_validation="when_required",
        # botocore's default over TLS: the body of an upload that carries a checksum is not part of the signature.
        s3={"payload_signing_enabled": True},
    )


def _checksums_to_try(session: botocore.session.Session) -> list[Checksum]:
    """NONE first, unless the user asks AWS's clients for checksums.

    Not `get_config_variable`: it cannot tell the user's setting from botocore's default, which is to send them.
    """
    wanted = os.environ.get("AWS_REQUEST_CHECKSUM_CALCULATION") or session.get_scoped_config().get(
        "request_checksum_calculation", ""
    )
    if wanted.lower() == "when_supported":
        return [Checksum.CRC32, Checksum.MD5, Checksum.NONE]
    return [Checksum.NONE, Checksum.MD5, Checksum.CRC32]


def _add_content_md5(params: dict[str, Any], **_: Any) -> None:
    """An event handler of botocore: adds the header before the request is signed."""
    # Not for security: a Python built for FIPS refuses md5 otherwise.
    body, digest = params["body"], hashlib.md5(usedforsecurity=False)
    if isinstance(body, bytes | bytearray):
        digest.update(body)
    else:
        start = body.tell()
        while chunk := body.read(CHUNK_BYTES):
            digest.update(chunk)
        # botocore sends the body from its current position.
        body.seek(start)
    params["headers"]["Content-MD5"] = base64.b64encode(digest.digest()).decode()
