"""Checks credentials before the first request. Malformed ones would fail later, with a misleading message."""

from __future__ import annotations

import os
import unicodedata

import botocore.session
from botocore.credentials import Credentials, RefreshableCredentials

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


def describe_fault(value: str, *, is_header: bool) -> str | None:
    """What is wrong with a credential, without its characters; None: nothing.

    Args:
        is_header: it is sent in an HTTP header, which takes ASCII only. A secret key is not sent, it only signs.
    """
    # First, so that a line break, as `echo` appends it, is not called an invisible character.
    for place, char in (("begins", value[:1]), ("ends", value[-1:])):
        if char in ("\n", "\r"):
            return f"{place} with a line break"
        if char.isspace():
            return f"{place} with white space"
    if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'":
        return "is in quotation marks"
    # "C": control characters, and invisible ones such as a byte order mark.
    if any(unicodedata.category(char).startswith("C") for char in value):
        return "contains a line break or another invisible character"
    if is_header and not value.isascii():
        return "contains a character that is not ASCII"
    return None


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
