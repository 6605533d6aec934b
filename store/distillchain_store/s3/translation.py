"""What the errors of botocore and of an S3 server mean to a user. Decides over values; makes no request."""

from __future__ import annotations

import datetime
import os
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

import botocore.exceptions as aws
from boto3.exceptions import RetriesExceededError
from botocore.parsers import ResponseParserError
from s3transfer.exceptions import S3DownloadFailedError

from distillchain_store.connection_faults import bundle_fault, proxy_variable, tls_fault
from distillchain_store.errors import POD_ENV, ObjectMissing, StorageDenied, StoreError
from distillchain_store.redaction import without_userinfo
from distillchain_store.s3.answer import PASSING_STATUS, Answer, CredentialsExpired, Transient, parse_answer
from distillchain_store.s3.credential_errors import (
    CREDENTIAL_OPERATIONS,
    EXPIRED_CODES,
    of_credential_service,
    of_credentials,
)

# Codes of AWS and of other servers. botocore gives the HTTP status as the code of an answer without a body.
CREDENTIAL_CODES = {
    "AccessDenied", "403", "Forbidden", "InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken",
    "AllAccessDisabled", "AccountProblem", "InvalidSecurity",
}  # fmt: skip
CLOCK_CODES = {"RequestTimeTooSkewed", "RequestExpired"}
REGION_CODES = {
    "PermanentRedirect", "301", "TemporaryRedirect", "307", "AuthorizationHeaderMalformed",
    "IllegalLocationConstraintException",
}  # fmt: skip
PATH_STYLE_CODES = {"SecondLevelDomainForbidden", "PathStyleDomainForbidden"}  # of Alibaba Cloud and Tencent Cloud
MISSING_CODES = {"NoSuchKey", "404", "NotFound"}
BUSY_CODES = {"SlowDown", "RequestTimeout", "ThrottlingException", "TooManyRequests", "ConditionalRequestConflict"}
QUOTA_CODES = {"QuotaExceeded", "XMinioAdminBucketQuotaExceeded", "XMinioStorageFull"}  # of Ceph and others; of MinIO
PASSING_CODES = {
    "NoSuchUpload", "InvalidPart", "OperationAborted",  # a part or an answer was lost: the file is sent again
    "BadDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch", "IncompleteBody",  # altered on the way
}  # fmt: skip
CONNECTION_ERRORS = (
    aws.ConnectionError,
    aws.HTTPClientError,
    aws.IncompleteReadError,
    aws.FlexibleChecksumError,  # the content was altered on the way
    RetriesExceededError,
)
HEADERS = ("ContentLength", "ETag")  # of every answer of S3 to HEAD and to an upload, as botocore names them
CA_BUNDLE = "AWS_CA_BUNDLE"
CLUSTER_HOST = re.compile(r"\.svc(\.|$)")  # of a Service, as Kubernetes names it
CHECKSUM_WORDS = ("checksum", "content-md5", "contentmd5", "x-amz-trailer", "aws-chunked", "unsigned-payload-trailer")


@dataclass(frozen=True)
class Address:
    """Which store an error is about, as messages name it.

    Attributes:
        field: where in the chain the URI stands.
        credentials: where they come from.
        endpoint_field: where the endpoint comes from: a field, or a variable of AWS.
    """

    uri: str
    bucket: str
    endpoint: str
    field: str
    credentials: str
    endpoint_field: str = "spec.storage.endpointUrl"


def wants_other_checksum(error: aws.ClientError, *, sent: bool) -> bool:
    """Whether a server refused an upload for its checksum headers: it requires one, or does not know them.

    Args:
        sent: the upload had such headers; if not, "not implemented" is about something else, such as If-None-Match.
    """
    answer = parse_answer(error.response)
    if answer.code in PASSING_CODES:
        return False  # the checksum was accepted and did not match
    text = answer.said.lower()
    return (sent and _is_not_implemented(answer)) or any(word in text for word in CHECKSUM_WORDS)


def translate(error: Exception, address: Address, key: str, *, now: datetime.datetime) -> StoreError | None:
    """What an exception of a request means; None: it is not about the store."""
    if isinstance(error, aws.ClientError):
        answer = parse_answer(error.response)
        if error.operation_name in CREDENTIAL_OPERATIONS:
            return of_credential_service(error.operation_name, answer, address.uri)
        return translate_answer(answer, address, key, now=now)
    if found := of_credentials(error, address.uri):
        return found
    if isinstance(error, CONNECTION_ERRORS):
        return _of_connection(error, address)
    if isinstance(error, S3DownloadFailedError):  # its ETag is another one than when the download began
        return Transient(
            f"{address.uri}/{key} was replaced while it was read",
            "do not write to it while chains run; give changed data or models a new name",
        )
    # HTML, for example, from a proxy or from a web server at the same address; or a listing that goes round in circles.
    is_header_missing = isinstance(error, KeyError) and error.args[0] in HEADERS
    if is_header_missing or isinstance(error, ResponseParserError | aws.PaginationError):
        return Transient(
            f"{address.endpoint_field}: the answer of {address.endpoint} is not S3{_through_proxy(address)}",
            "check the address",
        )
    # After the classes above, which are derived from it.
    if isinstance(error, aws.BotoCoreError):  # its own checks of names, profiles and configuration files
        why = without_userinfo(" ".join(str(error).split()))
        return StorageDenied(f"spec.storage: {why}; correct it or the environment's AWS configuration")
    return _of_system(error, address) if isinstance(error, OSError) else None


def translate_answer(answer: Answer, address: Address, key: str, *, now: datetime.datetime) -> StoreError:
    """What an answer of the server means."""
    if answer.code == "NoSuchBucket":
        return StorageDenied(
            f"{address.field}: {address.endpoint} has no bucket {address.bucket}; create it or correct the name"
        )
    if answer.code in MISSING_CODES:
        return ObjectMissing(f"{address.uri}/{key}: no such object")
    # Before the status is looked at: it is 403, like that of wrong credentials.
    if answer.code in CLOCK_CODES:
        return _clock_skew(answer, address, now)
    # May pass: the credentials are read again, and a file or an agent may have a new token by now.
    if answer.code in EXPIRED_CODES:
        return CredentialsExpired(
            f"spec.storage: the session token for {address.uri} from {address.credentials} has expired ({answer.said})",
            "renew it there, or use a service account with a role, whose token renews itself",
        )
    # Not final: a user can free space while a trained student waits to be stored.
    if answer.code in QUOTA_CODES:
        return Transient(
            f"spec.storage: {address.endpoint} has no space left for {address.uri} ({answer.said})",
            f"raise the quota of bucket {address.bucket}, or free space there (distillchain gc)",
        )
    if _may_pass(answer):
        return Transient(
            f"{address.endpoint_field}: {address.endpoint} could not handle the request for {address.uri}/{key} "
            f"({answer.said}){_through_proxy(address)}",
            "check the store",
        )
    return _refusal(answer, address, key)


def _may_pass(answer: Answer) -> bool:
    if answer.code in BUSY_CODES | PASSING_CODES or answer.status in PASSING_STATUS:
        return True
    if _is_not_implemented(answer):
        return False
    # A status below 400 is that of an entry in the answer of DeleteObjects, which has only a code (status 0).
    named = answer.code in REGION_CODES | CREDENTIAL_CODES
    return answer.status >= 500 or (answer.status < 400 and not named)


def _is_not_implemented(answer: Answer) -> bool:
    return answer.code == "NotImplemented" or answer.status == 501


def _refusal(answer: Answer, address: Address, key: str) -> StorageDenied:
    if answer.code in REGION_CODES:
        return StorageDenied(
            f"spec.storage.region: bucket {address.bucket} is in another region ({answer.said}); name that region"
        )
    # Both before the status is looked at: it is 403, like that of wrong credentials.
    if answer.code in PATH_STYLE_CODES:
        return StorageDenied(
            f"{address.endpoint_field}: {address.endpoint} wants the bucket in the name of the host ({answer.said}); "
            "write `addressing_style = virtual` below `s3 =` into the file that AWS_CONFIG_FILE names"
        )
    if answer.code == "InvalidObjectState":
        return StorageDenied(
            f"{address.uri}/{key} was moved to an archive ({answer.said}), perhaps by a lifecycle rule of bucket "
            f"{address.bucket}; restore it, and exempt {address.uri} from the rule"
        )
    if answer.code in CREDENTIAL_CODES or answer.status in (401, 403):
        return StorageDenied(
            f"spec.storage: {address.endpoint} refused {address.uri} ({answer.said}) with the credentials from "
            f"{address.credentials}; correct them, or allow them to read and write there"
        )
    # A proxy asks for a user name; its answer never comes from S3.
    if answer.status == 407:
        return StorageDenied(
            f"{address.endpoint_field}: a proxy refused the request for {address.uri} ({answer.said})"
            f"{_through_proxy(address)}; give the proxy's user name and password, or add the host to NO_PROXY"
        )
    if _is_not_implemented(answer):
        return StorageDenied(
            f"spec.storage: {address.endpoint} does not support a request that a commit needs ({answer.said}); use "
            "another store"
        )
    return StorageDenied(
        f"spec.storage: {address.endpoint} refused the request for {address.uri}/{key} ({answer.said}); check the "
        "store's rules for this bucket"
    )


def _clock_skew(answer: Answer, address: Address, now: datetime.datetime) -> Transient:
    here = f"this machine's clock shows {_show_time(now)}"
    if answer.server_time is None:
        clocks = f"{here}, the store does not say its time"
    else:
        apart_s = abs((now - answer.server_time).total_seconds())
        clocks = f"{here}, the store's {_show_time(answer.server_time)}: {apart_s:.0f} s apart"
    return Transient(
        f"spec.storage: {address.endpoint} refused {address.uri} because the clocks differ ({answer.code}): {clocks}",
        "correct the clock that is wrong, for example with NTP",
    )


def _of_connection(error: Exception, address: Address) -> StoreError:
    if isinstance(error, aws.SSLError):
        fault = tls_fault(error, bundle_variable=CA_BUNDLE) or bundle_fault(error, bundle_variable=CA_BUNDLE)
        # Any other TLS error, such as a connection that is reset during the handshake, may pass.
        if fault:
            return StorageDenied(
                f"{address.endpoint_field}: {address.endpoint} cannot be trusted{_through_proxy(address)}: {fault}"
            )
    # Before the general answer: here the proxy has to be corrected, not the endpoint.
    if isinstance(error, aws.ProxyConnectionError):
        return Transient(
            f"{address.endpoint_field}: the proxy in {proxy_variable(address.endpoint) or 'HTTPS_PROXY'} did not "
            f"connect to {address.endpoint} ({_of_proxy(error)})",
            "correct that variable, or add the host to NO_PROXY",
        )
    return Transient(
        f"{address.endpoint_field}: {address.endpoint} did not answer ({_kind(error)}){_through_proxy(address)}",
        _remedy_of(address.endpoint),
    )


def _of_system(error: OSError, address: Address) -> StoreError | None:
    if error.filename is not None:  # of the local file, not of the connection
        return None
    return Transient(
        f"{address.endpoint_field}: {address.endpoint} did not answer ({type(error).__name__})",
        _remedy_of(address.endpoint),
    )


def _remedy_of(endpoint: str) -> str:
    """What to do about a server that does not answer."""
    if CLUSTER_HOST.search(urlsplit(endpoint).hostname or "") and not os.environ.get(POD_ENV):
        return (
            "its address is known only within the cluster: forward its port (kubectl port-forward), set "
            "AWS_ENDPOINT_URL_S3 to the forwarded address, and name the store with --storage"
        )
    return "check the address and the network"


def _kind(error: Exception) -> str:
    """The name of the error; botocore's HTTPClientError wraps any other one, which says more."""
    inner = getattr(error, "kwargs", {}).get("error")
    return type(inner if type(error) is aws.HTTPClientError and inner is not None else error).__name__


def _of_proxy(error: aws.ProxyConnectionError) -> str:
    """The proxy's answer ("Tunnel connection failed: 407 ..."), or the kind of error when it gave none."""
    reason = error.kwargs["error"].args[-1]
    return str(reason) if str(reason).startswith("Tunnel") else type(reason).__name__


def _through_proxy(address: Address) -> str:
    variable = proxy_variable(address.endpoint)
    return f", through the proxy in {variable}" if variable else ""


def _show_time(time: datetime.datetime) -> str:
    return time.astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
