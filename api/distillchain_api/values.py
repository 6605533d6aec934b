"""Small values with their own rules: URIs, names, durations, digests.

Patterns are valid in RE2 and in Python, because the API server checks the same ones.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Annotated, NewType

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from distillchain_api.cel import cel, rules
from distillchain_api.faults import Expect, expected

StageDigest = NewType("StageDigest", str)
"""64 lowercase hex digits: what decides the result of a stage (digests.py)."""

# A part of a path that is neither "." nor "..": with those, one place would have several spellings and digests.
_CHAR = r"[^/\s\x00-\x1f\x7f]"
_PART = rf"(\.{{0,2}}[^/\s.\x00-\x1f\x7f]{_CHAR}*|\.{{3,}}{_CHAR}*)"
_REVISION = r"@[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9._-]+)*"
_HF = rf"hf://[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?({_REVISION})?"
_S3 = rf"s3://[a-z0-9][a-z0-9.-]{{1,61}}[a-z0-9](/{_PART})*"
_FILE = rf"file://(/{_PART})+"
MAX_URI_CHARS = 1024  # S3's own limit on a key, which it counts in bytes


def without_slash(uri: str) -> str:
    """`s3://bucket/prefix/` as `s3://bucket/prefix`: both name one folder, so both must give one digest."""
    return uri.removesuffix("/")


def is_plain_path(path: str) -> bool:
    """Whether a relative path has no second spelling: no empty part, no "." and no ".."."""
    return not {"", ".", ".."} & set(path.split("/"))


def cel_same_folder(field: str = "") -> str:
    """The CEL rule that a URI stays the same; the API server stores a URI as the user wrote it, with or without slash.

    Args:
        field: of the object that the rule is about, such as `.endpointUrl`; empty: the object is the URI.
    """
    new, old = f"self{field}", f"oldSelf{field}"
    return f"{new} == {old} || {new} + '/' == {old} || {new} == {old} + '/'"


def _in_bytes(uri: str) -> str:
    if len(uri.encode()) > MAX_URI_CHARS:
        raise PydanticCustomError("fault", "{problem}", {"problem": expected(uri, f"{MAX_URI_CHARS} bytes at most")})
    return uri


URI_RULE = cel(f"bytes(self).size() <= {MAX_URI_CHARS}", f"expected {MAX_URI_CHARS} bytes at most")

SourceUri = Annotated[
    str,
    Field(pattern=f"^({_HF}|{_S3}|{_FILE})/?$", max_length=MAX_URI_CHARS, json_schema_extra=rules(URI_RULE)),
    AfterValidator(_in_bytes),
    AfterValidator(without_slash),
    Expect(
        "hf://repo[@revision], s3://bucket/prefix or file:///absolute/path",
        "without spaces, '//', '/./' and '/../'",
    ),
]
StorageUri = Annotated[
    str,
    Field(pattern=f"^({_S3}|{_FILE})/?$", max_length=MAX_URI_CHARS),
    AfterValidator(_in_bytes),
    AfterValidator(without_slash),
    Expect("s3://bucket/prefix or file:///absolute/path", "without spaces, '//', '/./' and '/../'"),
]

# Names as Kubernetes has them (RFC 1123): of a namespace, and of most other objects.
DNS_1123_LABEL = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
DNS_SUBDOMAIN = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"
DNS_LABEL = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"
MAX_STAGE_NAME_CHARS = 32  # leaves room for the chain's name and a hash in the 63 of a Job's name
StageName = Annotated[
    str,
    Field(pattern=DNS_LABEL, min_length=1, max_length=MAX_STAGE_NAME_CHARS),
    Expect("a DNS label: lowercase letters, digits and '-', starting with a letter, 32 at most", "for example tiny-2"),
]

# The API server reads a duration as nanoseconds in 64 bits, at most 292 years; these digits stay below that.
_HOURS, _MINUTES, _SECONDS = "[0-9]{1,6}h", "[0-9]{1,7}m", "[0-9]{1,9}s"
DURATION = f"^({_HOURS}({_MINUTES})?({_SECONDS})?|{_MINUTES}({_SECONDS})?|{_SECONDS})$"

_EXPECT_DURATION = Expect(
    "a duration such as 6h, 1h30m or 90s", "write whole hours, minutes and seconds in that order, each with its unit"
)


def duration_seconds(text: str) -> int:
    """Seconds of a duration such as `6h`, `1h30m` or `90s`."""
    unit_s = {"h": 3600, "m": 60, "s": 1}
    return sum(int(number) * unit_s[unit] for number, unit in re.findall(r"([0-9]+)([hms])", text))


def _a_minute(text: str) -> str:
    if duration_seconds(text) < 60:
        problem = expected(text, "at least a minute", "write 1m or more, so that the log of a Job can still be read")
        raise PydanticCustomError("fault", "{problem}", {"problem": problem})
    return text


def _positive(text: str) -> str:
    # The pattern alone allows 0s, which some would read as `no limit` and others as `no time`.
    if duration_seconds(text) <= 0:
        raise PydanticCustomError("fault", "{problem}", {"problem": expected(text, "a duration above zero")})
    return text


Duration = Annotated[
    str,
    Field(
        pattern=DURATION,
        max_length=32,
        json_schema_extra={
            "x-kubernetes-validations": [
                {"rule": "duration(self) > duration('0s')", "message": "expected a duration above zero"},
            ]
        },
    ),
    AfterValidator(_positive),
    _EXPECT_DURATION,
]

LongDuration = Annotated[
    str,
    Field(
        pattern=DURATION,
        max_length=32,
        json_schema_extra=rules(
            cel("duration(self) >= duration('1m')", "expected at least a minute; write 1m or more")
        ),
    ),
    AfterValidator(_a_minute),
    _EXPECT_DURATION,
]
"""A duration of at least a minute."""

Share = Annotated[
    float, Field(ge=0, le=1), Expect("a share from 0 to 1", "for five points write 0.05, for ninety percent 0.9")
]

Text = Annotated[str, Field(min_length=1, max_length=256), Expect("text of 1 to 256 characters")]
TextColumns = Annotated[
    list[Text],
    Field(min_length=1, max_length=2),
    Expect("a list of one or two column names", "write [sentence], for example"),
]


def nfc(text: str) -> str:
    """Text in Unicode's composed form: "é" as one character and as "e" with an accent are the same word."""
    return unicodedata.normalize("NFC", text)


PlainText = Annotated[
    str,
    Field(min_length=1, max_length=256, pattern=r"^[^\x00-\x1f\x7f]+$"),
    Expect("text of 1 to 256 characters without tabs, line breaks and other control characters"),
]
"""A name in a long list: control characters take six times the space in JSON."""
HTTP_ADDRESS = r"https?://[!-.0-?A-~]+(/[!-~]*)?"
"""Of ASCII characters, without user and password before the host: a chain, its work order and its status can be read by
many."""

ClassName = Annotated[PlainText, AfterValidator(nfc)]
"""Name of a class, in the form in which names are compared and stored."""
