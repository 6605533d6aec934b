"""The store on S3 and what speaks like it. The one place that knows botocore's errors."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

import boto3
import botocore.exceptions as aws
import botocore.session
import tenacity
from boto3.exceptions import RetriesExceededError
from boto3.s3.transfer import TransferConfig
from botocore.config import Config

from distillchain_store.errors import (
    DISK_REMEDY,
    FULL,
    DiskFull,
    ObjectMissing,
    StorageDenied,
    StorageUnavailable,
    StoreError,
)
from distillchain_store.redaction import without_userinfo
from distillchain_store.store import PATIENCE_S, Fingerprint, StoredObject, fingerprint_of, fingerprint_stream

if TYPE_CHECKING:
    from typing import BinaryIO

    from mypy_boto3_s3 import S3Client

log = logging.getLogger(__name__)

T = TypeVar("T")

METADATA_ATTEMPTS = 3  # one alone is lost where a node has just started
PART_BYTES = 16 << 20
TRANSFER = TransferConfig(multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES, max_concurrency=8)
DELETE_AT_ONCE = 1000  # S3's own limit

CREDENTIAL_CODES = {
    "AccessDenied", "403", "Forbidden", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken",
    "TokenRefreshRequired", "ExpiredTokenException", "AllAccessDisabled", "AccountProblem", "InvalidSecurity",
}  # fmt: skip
REGION_CODES = {"PermanentRedirect", "301", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"}
MISSING_CODES = {"NoSuchKey", "404", "NotFound"}
BUSY_CODES = {"SlowDown", "RequestTimeout", "ThrottlingException", "TooManyRequests", "ConditionalRequestConflict"}
PASSING_CODES = {
    "NoSuchUpload", "InvalidPart", "OperationAborted",  # a part or an answer was lost: the file is sent again
    "BadDigest", "XAmzContentSHA256Mismatch", "IncompleteBody",  # altered or cut on the way
}  # fmt: skip
PASSING_STATUS = {408, 409, 429}  # request timeout, conflict, too many requests
TAKEN_CODES = {"PreconditionFailed", "412"}


class _Away(StorageUnavailable):
    """The store did not do it this time."""

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(f"{what}; {remedy}")
        self.what, self.remedy = what, remedy


def _say_that_it_is_away(state: tenacity.RetryCallState) -> None:
    why = state.outcome.exception() if state.outcome else None
    log.warning("the store is tried again", extra={"away_s": round(state.seconds_since_start or 0), "why": str(why)})


def _connect(endpoint_url: str | None, region: str | None) -> S3Client:
    """A client with credentials, if there are any. Raises: StorageDenied; CredentialRetrievalError."""
    session = botocore.session.get_session()
    if session.get_config_variable("metadata_service_num_attempts") == 1:  # boto3's own default
        session.set_config_variable("metadata_service_num_attempts", METADATA_ATTEMPTS)
    config = Config(
        connect_timeout=5,
        read_timeout=60,
        max_pool_connections=16,
        retries={"mode": "standard", "total_max_attempts": 2},
        request_checksum_calculation="when_required",  # the newer trailing CRCs are not known everywhere
        response_checksum_validation="when_required",
        s3={"payload_signing_enabled": True},
    )
    try:
        return boto3.session.Session(botocore_session=session).client(
            "s3", endpoint_url=endpoint_url, region_name=region, config=config
        )
    except (aws.CredentialRetrievalError, aws.MetadataRetrievalError):
        raise
    except (aws.BotoCoreError, ValueError) as error:
        said = without_userinfo(str(error))
        raise StorageDenied(f"spec.storage: {said}; correct it or the environment's AWS configuration") from error


class S3Store:
    """Objects under s3://bucket/prefix; credentials come from the environment alone.

    Every body is signed with its sha256 (each part of a large one), so the server refuses what was altered on the way.
    """

    def __init__(
        self,
        uri: str,
        *,
        endpoint_url: str | None = None,
        region: str | None = None,
        field: str = "spec.storage.uri",
        patience_s: float = PATIENCE_S,
    ) -> None:
        self.uri = uri
        bucket, _, prefix = uri.removeprefix("s3://").partition("/")
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        self._field = field
        self.patience: Callable[[], float] = lambda: patience_s
        self._endpoint = without_userinfo(endpoint_url or "AWS")  # until there is a client
        self._client: S3Client = self._call("", lambda: _connect(endpoint_url, region))
        self._endpoint = without_userinfo(self._client.meta.endpoint_url)

    def read(self, key: str) -> bytes:
        """See Store."""

        def fetch() -> bytes:
            content: bytes = self._client.get_object(Bucket=self._bucket, Key=self._prefix + key)["Body"].read()
            return content

        return self._call(key, fetch)

    def write(self, key: str, content: bytes) -> None:
        """See Store."""
        self._call(key, lambda: self._client.put_object(Bucket=self._bucket, Key=self._prefix + key, Body=content))

    def create(self, key: str, content: bytes) -> bool:
        """See Store. A retry after a lost answer may find the writer's own object: compare before giving up."""

        def put() -> bool:
            try:
                self._client.put_object(Bucket=self._bucket, Key=self._prefix + key, Body=content, IfNoneMatch="*")
            except aws.ClientError as error:
                if error.response.get("Error", {}).get("Code") in TAKEN_CODES:
                    return False
                raise
            return True

        return self._call(key, put)

    def upload(self, key: str, path: Path) -> Fingerprint:
        """See Store."""
        stored = fingerprint_of(path)

        def send() -> None:
            # upload_fileobj, because upload_file hides the server's error in a sentence.
            with path.open("rb") as file:
                self._client.upload_fileobj(file, self._bucket, self._prefix + key, Config=TRANSFER)

        self._call(key, send)
        return stored

    def download(self, key: str, path: Path) -> Fingerprint:
        """See Store."""
        path.parent.mkdir(parents=True, exist_ok=True)

        def receive() -> None:
            with path.open("wb") as file:
                self._client.download_fileobj(self._bucket, self._prefix + key, file, Config=TRANSFER)

        try:
            self._call(key, receive)
        except ObjectMissing:
            path.unlink(missing_ok=True)
            self._raise_if_bucket_is_missing(key)
            raise
        return fingerprint_of(path)

    def fingerprint(self, key: str) -> Fingerprint:
        """See Store."""

        def fetch() -> Fingerprint:
            body = self._client.get_object(Bucket=self._bucket, Key=self._prefix + key)["Body"]
            return fingerprint_stream(cast("BinaryIO", body))

        return self._call(key, fetch)

    def list_objects(self, prefix: str) -> list[StoredObject]:
        """See Store."""

        def fetch() -> list[StoredObject]:
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=self._prefix + prefix
            )
            return [
                StoredObject(item["Key"].removeprefix(self._prefix), item["Size"])
                for page in pages
                for item in page.get("Contents", [])
            ]

        return sorted(self._call(prefix, fetch), key=lambda item: item.key)

    def delete(self, keys: list[str]) -> None:
        """See Store."""
        for start in range(0, len(keys), DELETE_AT_ONCE):
            some = [{"Key": self._prefix + key} for key in keys[start : start + DELETE_AT_ONCE]]

            def remove(some: list[dict[str, str]] = some) -> None:
                # The stubs want their own TypedDict for {"Key": ...}.
                answer = self._client.delete_objects(Bucket=self._bucket, Delete={"Objects": some, "Quiet": True})  # type: ignore[typeddict-item]
                for error in answer.get("Errors", []):  # one refused key is no error of the whole request
                    if error.get("Code") not in MISSING_CODES:
                        code, words = error.get("Code", ""), error.get("Message", "")
                        raise aws.ClientError({"Error": {"Code": code, "Message": words}}, "DeleteObjects")

            self._call(keys[start], remove)

    def _raise_if_bucket_is_missing(self, key: str) -> None:
        """HEAD, which downloads begin with, has no body and so cannot tell a missing bucket from a missing key."""
        self._call(key, lambda: self._client.list_objects_v2(Bucket=self._bucket, MaxKeys=1))

    def _call(self, key: str, request: Callable[[], T]) -> T:
        """The request's answer, tried again while the store is away."""
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(_Away),
            wait=tenacity.wait_exponential_jitter(multiplier=0.5, max=8),
            stop=lambda state: (state.seconds_since_start or 0.0) >= self.patience(),
            before_sleep=_say_that_it_is_away,
            reraise=True,
        )
        try:
            answer: T = retrying(self._translated, key, request)
        except _Away as away:
            raise StorageUnavailable(
                f"{away.what}, also after {self.patience():.0f} s of trying; {away.remedy}"
            ) from away.__cause__
        return answer

    def _translated(self, key: str, request: Callable[[], T]) -> T:
        with self._errors(key):
            return request()

    @contextlib.contextmanager
    def _errors(self, key: str) -> Iterator[None]:
        try:
            yield
        except aws.ClientError as error:
            raise self._of_answer(key, error) from error
        except (aws.CredentialRetrievalError, aws.MetadataRetrievalError) as error:
            said = without_userinfo(str(error))
            raise _Away(
                f"spec.storage: who gives the credentials for {self.uri} did not answer ({said})",
                "look at the service account's role and its agent on the node",
            ) from error
        except (aws.NoCredentialsError, aws.PartialCredentialsError) as error:
            raise StorageDenied(
                f"spec.storage.secretRef: no credentials for {self.uri} ({error}); name a Secret with "
                "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the service account a role; outside a cluster "
                "set these variables or AWS_PROFILE"
            ) from error
        except (aws.BotoCoreError, RetriesExceededError, OSError) as error:
            if isinstance(error, OSError) and error.errno in FULL:
                raise DiskFull(f"no space left on the disk for {self.uri}/{key}; {DISK_REMEDY}") from error
            if isinstance(error, OSError) and error.filename is not None:  # of the local file, not of the connection
                raise
            reason = type(error).__name__
            raise _Away(
                f"spec.storage.endpointUrl: {self._endpoint} did not answer ({reason})",
                "check the address and the network",
            ) from error

    def _of_answer(self, key: str, error: aws.ClientError) -> StoreError:
        """What an error of the server means to a person."""
        answer = error.response.get("Error", {})
        code, words = answer.get("Code", ""), answer.get("Message", "")
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        said = f"{code}: {words}" if words else code
        if code == "NoSuchBucket":
            return StorageDenied(
                f"{self._field}: {self._endpoint} has no bucket {self._bucket}; create it or correct the name"
            )
        if code in MISSING_CODES:
            return ObjectMissing(f"{self.uri}/{key}: no such object")
        if code in REGION_CODES:
            return StorageDenied(f"spec.storage.region: bucket {self._bucket} is in another region ({said}); name it")
        if code in BUSY_CODES or status >= 500:
            if code == "NotImplemented":
                return StorageDenied(f"spec.storage: {self._endpoint} lacks what a commit needs ({said}); use another")
            return _Away(f"spec.storage.endpointUrl: {self._endpoint} could not do it ({said})", "look at the store")
        if code == "RequestTimeTooSkewed":
            return StorageDenied(
                f"spec.storage: {self._endpoint} refused {self.uri} ({said}); set the clock here or there"
            )
        if code in CREDENTIAL_CODES or status in (401, 403):
            return StorageDenied(
                f"spec.storage.secretRef: {self._endpoint} refused {self.uri} ({said}); correct the Secret's "
                "credentials, or let them read and write there"
            )
        if code in PASSING_CODES or status in PASSING_STATUS or not 400 <= status < 500:
            return _Away(f"spec.storage: {self._endpoint} answered {said} to {self.uri}/{key}", "look at the store")
        return StorageDenied(
            f"spec.storage: {self._endpoint} does not do what it was asked for {self.uri}/{key} ({said}); look at the "
            "store's rules for this bucket"
        )
