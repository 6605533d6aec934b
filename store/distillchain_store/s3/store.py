"""The operations of a store on S3. Requests are repeated while the store is unavailable and patience lasts."""

from __future__ import annotations

import contextlib
import datetime
import functools
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, TypeVar, cast

import botocore.exceptions as aws
import tenacity
from boto3.s3.transfer import TransferConfig

from distillchain_store.cache import FileCache
from distillchain_store.errors import FULL, ObjectMissing, StorageDenied, StorageUnavailable, StoreError, disk_full
from distillchain_store.patience import NORMAL_S, Patience
from distillchain_store.redaction import without_userinfo
from distillchain_store.s3.answer import Answer, CredentialsExpired, Transient, parse_answer
from distillchain_store.s3.connection import Connection
from distillchain_store.s3.translation import Address, translate, translate_answer
from distillchain_store.store import Fingerprint, StoredObject, Unfinished, fingerprint_of, fingerprint_stream

if TYPE_CHECKING:
    from typing import BinaryIO

    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import ObjectIdentifierTypeDef

log = logging.getLogger(__name__)

T = TypeVar("T")

# 16 MiB. S3 allows 10,000 parts, so an object may have up to 156 GiB.
PART_BYTES = 16 << 20
TRANSFER = TransferConfig(multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES, max_concurrency=8)
ENDPOINT_VARIABLES = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")  # botocore prefers the first
DELETE_AT_ONCE = 1000  # S3's own limit
# "412" is the HTTP status, which botocore gives as the code of an answer without a body.
TAKEN_CODES = {"PreconditionFailed", "412"}


class _Object(TypedDict):
    """The parameters of a request that name an object."""

    Bucket: str
    Key: str


class S3Store:
    """Objects under s3://bucket/prefix. Credentials come from the environment alone.

    Every body is signed with its sha256 (each part of a large one), so the server refuses a body that was altered on
    the way.
    """

    def __init__(
        self,
        uri: str,
        *,
        endpoint_url: str | None = None,
        region: str | None = None,
        encryption: Mapping[str, str | bool] | None = None,
        field: str = "spec.storage.uri",
        patience_s: float = NORMAL_S,
        cache: FileCache | None = None,
    ) -> None:
        self.uri = uri
        self._cache = cache
        self.patience: Patience = lambda: patience_s
        bucket, _, prefix = uri.removeprefix("s3://").partition("/")
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        self._field = field
        self._deletes_many = True  # until the server refuses it
        self._credentials_expired = False
        variable = next((name for name in ENDPOINT_VARIABLES if os.environ.get(name)), None)
        self._endpoint_field = "spec.storage.endpointUrl" if endpoint_url or not variable else variable
        # For messages, until there is a client.
        self._endpoint, self._credentials = without_userinfo(endpoint_url or "AWS"), ""
        # Repeated too: an agent that provides credentials may not be up yet on a new node.
        self._connection = self._repeat("", lambda: Connection(endpoint_url, region, encryption))
        self._endpoint, self._credentials = self._connection.endpoint, self._connection.credentials

    def read(self, key: str) -> bytes:
        """See Store."""

        def fetch(client: S3Client) -> bytes:
            content: bytes = client.get_object(**self._object(key))["Body"].read()
            return content

        return self._call(key, fetch)

    def write(self, key: str, content: bytes) -> None:
        """See Store."""
        self._send(key, lambda client: client.put_object(**self._object(key), Body=content))

    def create(self, key: str, content: bytes) -> bool:
        """See Store. False may mean that the answer to an earlier try was lost: the object may be this writer's own."""

        def put(client: S3Client) -> bool:
            try:
                client.put_object(**self._object(key), Body=content, IfNoneMatch="*")
            except aws.ClientError as error:
                # Not an error, and not translated: 412 is how the server says that another writer was first.
                if parse_answer(error.response).code in TAKEN_CODES:
                    return False
                raise
            return True

        return self._send(key, put)

    def upload(self, key: str, path: Path) -> Fingerprint:
        """See Store."""
        # Of the local file: the server refuses a body that differs from its signature, so what it stores has the same.
        stored = fingerprint_of(path)

        def send(client: S3Client) -> None:
            # upload_fileobj, because upload_file hides the server's error in a sentence.
            with path.open("rb") as file:
                client.upload_fileobj(file, self._bucket, self._prefix + key, Config=TRANSFER)

        self._send(key, send)
        return stored

    def download(self, key: str, path: Path) -> Fingerprint:
        """See Store."""
        if self._cache is None:
            return self._download(key, path)
        return self._cache.fetch(lambda: self._version(key), path, lambda: self._download(key, path))

    def _version(self, key: str) -> str:
        """Names an object and its content as it is now: an object that is replaced gets another ETag."""
        head = self._call(key, self._with_reason(lambda client: client.head_object(**self._object(key))))
        return "\n".join([self._endpoint, self._bucket, self._prefix + key, head["ETag"], str(head["ContentLength"])])

    def _download(self, key: str, path: Path) -> Fingerprint:
        def receive(client: S3Client) -> None:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("wb") as file:
                    client.download_fileobj(self._bucket, self._prefix + key, file, Config=TRANSFER)
            except OSError as error:
                if error.errno in FULL:
                    raise disk_full(str(path)) from error
                raise

        try:
            self._call(key, self._with_reason(receive))
        except ObjectMissing:
            # The file was created before the server answered.
            path.unlink(missing_ok=True)
            raise
        # Of what is on the disk now, not of what the server announced.
        return fingerprint_of(path)

    def size(self, key: str) -> int:
        """See Store."""
        return self._call(
            key, self._with_reason(lambda client: client.head_object(**self._object(key))["ContentLength"])
        )

    def fingerprint(self, key: str) -> Fingerprint:
        """See Store."""

        def fetch(client: S3Client) -> Fingerprint:
            return fingerprint_stream(cast("BinaryIO", client.get_object(**self._object(key))["Body"]))

        return self._call(key, fetch)

    def list_objects(self, prefix: str) -> list[StoredObject]:
        """See Store."""

        def fetch(client: S3Client) -> list[StoredObject]:
            found = []
            for page in client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=self._prefix + prefix
            ):
                found += [
                    StoredObject(item["Key"].removeprefix(self._prefix), item["Size"], item["LastModified"].timestamp())
                    for item in page.get("Contents", [])
                ]
                # botocore takes such a page for the last one, so objects would be missing without notice.
                if page.get("IsTruncated") and not page.get("NextContinuationToken"):
                    raise StorageDenied(
                        f"{self._endpoint_field}: {self._endpoint} lists only {len(found)} objects of {self.uri} and "
                        "does not say how to list the others; use a store that has ListObjectsV2"
                    )
            return found

        with self._missing_is_refused():
            # By key: a server may list one on two pages when objects are written meanwhile.
            found = {item.key: item for item in self._call(prefix, fetch)}
        return sorted(found.values(), key=lambda item: item.key)

    def delete(self, keys: list[str]) -> None:
        """See Store."""
        for start in range(0, len(keys), DELETE_AT_ONCE):
            some = keys[start : start + DELETE_AT_ONCE]
            if self._deletes_many:
                self._delete_many(some)
            else:
                self._delete_one_by_one(some)

    def list_unfinished(self, prefix: str) -> list[Unfinished]:
        """See Store. The parts of an upload that a killed pod left behind are billed until someone aborts it."""

        def fetch(client: S3Client) -> list[Unfinished]:
            pages = client.get_paginator("list_multipart_uploads").paginate(
                Bucket=self._bucket, Prefix=self._prefix + prefix
            )
            return [
                Unfinished(
                    upload["Key"].removeprefix(self._prefix), upload["UploadId"], 0, upload["Initiated"].timestamp()
                )
                for page in pages
                for upload in page.get("Uploads", [])
            ]

        with self._missing_is_refused():
            return sorted(self._call(prefix, fetch), key=lambda write: (write.key, write.handle))

    def abandon(self, writes: list[Unfinished]) -> None:
        """See Store."""
        for write in writes:
            abort = functools.partial(_abort, self._object(write.key), write.handle)
            with contextlib.suppress(ObjectMissing):
                self._call(write.key, abort)

    def _delete_many(self, keys: list[str]) -> None:
        """Some servers require a Content-MD5 here, refuse its checksum headers, or lack it: then one by one."""
        try:
            refused = self._call(keys[0], lambda client: self._delete_at_once(client, keys))
        except StorageDenied as refusal:
            log.info("the store refuses to delete many objects at once", extra={"why": str(refusal)})
            self._delete_one_by_one(keys)
            # Only now: if single deletes are refused as well, the right to delete is missing, not the operation.
            self._deletes_many = False
            return
        if refused:
            raise refused[0]

    def _delete_at_once(self, client: S3Client, keys: list[str]) -> list[StoreError]:
        """Returns: the refusals. A request succeeds although some of its keys are refused."""
        objects: list[ObjectIdentifierTypeDef] = [{"Key": self._prefix + key} for key in keys]
        answer = client.delete_objects(Bucket=self._bucket, Delete={"Objects": objects, "Quiet": True})
        refused = []
        for item in answer.get("Errors", []):
            refusal = Answer(item.get("Code", ""), item.get("Message", ""), status=0, server_time=None)
            error = translate_answer(refusal, self._address(), item.get("Key", ""), now=_now())
            if isinstance(error, Transient):
                # `_repeat` sends the whole request again; a key that is deleted by now is no error.
                raise error
            if not isinstance(error, ObjectMissing):
                refused.append(error)
        return refused

    def _delete_one_by_one(self, keys: list[str]) -> None:
        for key in keys:
            named = self._object(key)
            with contextlib.suppress(ObjectMissing):
                self._call(key, functools.partial(_delete_one, named))

    def _object(self, key: str) -> _Object:
        return {"Bucket": self._bucket, "Key": self._prefix + key}

    def _address(self) -> Address:
        return Address(self.uri, self._bucket, self._endpoint, self._field, self._credentials, self._endpoint_field)

    def _with_reason(self, request: Callable[[S3Client], T]) -> Callable[[S3Client], T]:
        """Adds the reason to a refusal of HEAD, whose answer has no body.

        400 may be an expired token, 403 a wrong clock, and 404 a missing bucket. A listing is refused for the same
        reason, and its answer names it.
        """

        def explained(client: S3Client) -> T:
            try:
                return request(client)
            except aws.ClientError as error:
                # If the bucket can be listed after all, the answer to HEAD is about the object: raise it as it is.
                if error.operation_name == "HeadObject":
                    client.list_objects_v2(Bucket=self._bucket, MaxKeys=1)
                raise

        return explained

    @contextlib.contextmanager
    def _missing_is_refused(self) -> Iterator[None]:
        """For requests that need no object to be there: a 404 is then about the address."""
        try:
            yield
        except ObjectMissing as error:
            raise StorageDenied(
                f"{self._endpoint_field}: {self._endpoint} answered 404 for {self.uri}; check that this is the "
                "address of an S3 server"
            ) from error

    def _call(self, key: str, request: Callable[[S3Client], T]) -> T:
        """The answer of a request, repeated while the store is unavailable."""
        return self._repeat(key, lambda: request(self._current_connection().client))

    def _send(self, key: str, upload: Callable[[S3Client], T]) -> T:
        """As `_call`, for requests that carry an object."""
        with self._missing_is_refused():
            return self._repeat(key, lambda: self._current_connection().send(upload))

    def _current_connection(self) -> Connection:
        # Not in `_before_repeating`: an error raised here is translated and retried like that of the request itself.
        if self._credentials_expired:
            self._connection.renew()
            self._credentials_expired = False
        return self._connection

    def _repeat(self, key: str, attempt: Callable[[], T]) -> T:
        failed_at_s: list[float] = []

        def unavailable_s(state: tenacity.RetryCallState) -> float:
            # Not since the first attempt began: a large file may have been on its way for minutes before it failed.
            failed_at_s.append(state.outcome_timestamp or 0.0)
            return failed_at_s[-1] - failed_at_s[0]

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(Transient),
            # Seconds. The jitter spreads the requests of pods that wait for the same server.
            wait=tenacity.wait_exponential_jitter(multiplier=0.5, max=8),
            # Asks for the patience before each retry, because SIGTERM shortens it.
            stop=lambda state: unavailable_s(state) >= self.patience(),
            before_sleep=lambda state: self._before_repeating(state, unavailable_s(state)),
            reraise=True,
        )
        try:
            answer: T = retrying(self._translated, key, attempt)
        except Transient as error:
            raise StorageUnavailable(
                f"{error.what}, also after {self.patience():.0f} s of retries; {error.remedy}"
            ) from error.__cause__
        return answer

    def _translated(self, key: str, attempt: Callable[[], T]) -> T:
        try:
            return attempt()
        # Raised by Connection, which already knows the reason.
        except StoreError:
            raise
        except Exception as error:
            translated = translate(error, self._address(), key, now=_now())
            if translated is None:
                raise
            raise translated from error

    def _before_repeating(self, state: tenacity.RetryCallState, unavailable_s: float) -> None:
        error = state.outcome.exception() if state.outcome else None
        # Only noted here; see `_current_connection`.
        if isinstance(error, CredentialsExpired):
            self._credentials_expired = True
        log.warning(
            "a request to the store failed; repeating it",
            extra={"unavailable_s": round(unavailable_s), "why": str(error)},
        )


def _abort(named: _Object, upload: str, client: S3Client) -> None:
    try:
        client.abort_multipart_upload(**named, UploadId=upload)
    except aws.ClientError as error:
        # Elsewhere this code means that a part was lost; here the upload has ended in the meantime.
        if error.response.get("Error", {}).get("Code") != "NoSuchUpload":
            raise


def _delete_one(named: _Object, client: S3Client) -> None:
    client.delete_object(**named)


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
