"""Checks credentials before the first request. Malformed ones would fail later, with a misleading message."""

from __future__ import annotations

import os

import botocore.session
from botocore.credentials import Credentials, RefreshableCredentials

from distillchain_store.credential_faults import describe_fault
from distillchain_store.errors import StorageDenied

REMEDY = (
    "expected the value alone; write it again without that, for example with `kubectl create secret generic "
    "--from-literal`, or with `printf %s` instead of `echo`"
)


def check_credentials(session: botocore.session.Session) -> None:
    """Looks at static credentials; those of a role come from a service, which does not make such mistakes.

    Raises: StorageDenied naming the value, never showing it.
    """
    credentials = session.get_credentials()
    # Missing credentials are reported by the first request. Reading refreshable ones would already fetch them.
    if credentials is None or isinstance(credentials, RefreshableCredentials):
        return
    for name, value, is_header in _values(credentials):
        fault = describe_fault(value, is_header=is_header)
        if fault:
            raise StorageDenied(f"spec.storage.secretRef: {name} {fault}, {REMEDY}")


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
        return values
    # In a credentials file the names are in lower case.
    return [(f"{name.lower()} of {credentials.method}", value, is_header) for name, value, is_header in values]
