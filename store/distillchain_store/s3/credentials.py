"""Where credentials come from, and a check before the first request, where bad ones fail with a misleading message."""

from __future__ import annotations

import os

import botocore.exceptions as aws
from botocore.credentials import Credentials, RefreshableCredentials
from botocore.session import Session

from distillchain_store.credential_faults import describe_fault
from distillchain_store.errors import StorageDenied
from distillchain_store.redaction import without_userinfo
from distillchain_store.s3.answer import Transient

NO_ANSWER = (aws.EndpointConnectionError, aws.ConnectTimeoutError, aws.ReadTimeoutError, aws.ConnectionClosedError)
OF_A_POD = "in a pod, from the Secret that spec.storage.secretRef names"
REMEDY = (
    "expected the value alone; write it again without that, for example with `printf %s` instead of `echo`, or with "
    f"`kubectl create secret generic --from-literal` ({OF_A_POD})"
)


def describe_source(credentials: Credentials | None, *, profile: str | None) -> str:
    """Where credentials come from, for messages."""
    if credentials is None:
        return "nowhere"
    if credentials.method == "env":
        return f"the environment ({OF_A_POD})"
    if credentials.method in ("shared-credentials-file", "config-file"):
        return f"profile {profile or 'default'} of {credentials.method}"
    return str(credentials.method)


def read_credentials(session: Session) -> Credentials | None:
    """The credentials of this process; None: there are none, which the first request reports.

    Raises: StorageDenied naming what cannot be read, or a bad value; Transient if a service does not answer; errors of
        botocore.
    """
    try:
        credentials = session.get_credentials()
        if isinstance(credentials, RefreshableCredentials):
            credentials.get_frozen_credentials()  # those of a role are read only when they are needed
    except (FileNotFoundError, PermissionError) as error:
        raise StorageDenied(
            f"spec.storage: credentials need {error.filename}, which cannot be used ({error.strerror}); correct the "
            "environment's AWS configuration"
        ) from error
    except NO_ANSWER as error:  # not of the store, as the same errors of a later request
        service = without_userinfo(error.kwargs["endpoint_url"])
        raise Transient(
            f"spec.storage: {service}, which gives the credentials, did not answer ({type(error).__name__})",
            "check the network, such as proxies and NetworkPolicies",
        ) from error
    except EOFError as error:
        raise StorageDenied(
            "spec.storage: the role of the AWS profile asks for an MFA code, which needs a terminal; run "
            'there: eval "$(aws configure export-credentials --format env)"'
        ) from error
    _check_credentials(credentials)
    return credentials


def _check_credentials(credentials: Credentials | None) -> None:
    """Looks at static credentials; those of a role come from a service, which does not make such mistakes.

    Raises: StorageDenied naming the value, never showing it.
    """
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        if credentials is None and os.environ.get(name) == "":
            raise StorageDenied(f"spec.storage: {name} of the environment ({OF_A_POD}) is empty, expected a value")
    if credentials is None or isinstance(credentials, RefreshableCredentials):
        return
    for name, value, is_header in _values(credentials):
        fault = describe_fault(value, is_header=is_header)
        if fault:
            raise StorageDenied(f"spec.storage: {name} {fault}, {REMEDY}")


def _values(credentials: Credentials) -> list[tuple[str, str, bool]]:
    """Name, value, and whether it is sent in a header."""
    values = [
        ("AWS_ACCESS_KEY_ID", credentials.access_key, True),
        ("AWS_SECRET_ACCESS_KEY", credentials.secret_key, False),
    ]
    if credentials.token:
        # botocore prefers the first and still accepts the older second name.
        name = "AWS_SESSION_TOKEN" if os.environ.get("AWS_SESSION_TOKEN") else "AWS_SECURITY_TOKEN"
        values.append((name, credentials.token, True))
    if credentials.method == "env":
        return [(f"{name} of the environment", value, is_header) for name, value, is_header in values]
    # In a credentials file the names are in lower case.
    return [(f"{name.lower()} of {credentials.method}", value, is_header) for name, value, is_header in values]
