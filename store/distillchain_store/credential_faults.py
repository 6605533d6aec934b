"""What is wrong with a credential before it is sent. Shared by the S3 client and the hub client."""

from __future__ import annotations

import unicodedata


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
