"""Small values with rules of their own: URIs, names, durations, digests.

Patterns are RE2 as well as Python, because the API server checks the very same ones.
"""

from __future__ import annotations

import re
from typing import Annotated, NewType

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from distillchain_api.faults import Expect, expected

StageDigest = NewType("StageDigest", str)
"""64 lowercase hex digits: what decides the result of a stage (digests.py)."""

_HF = r"hf://[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?(@[A-Za-z0-9][A-Za-z0-9._/-]*)?"
_S3 = r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[^/\s]+)*"
_FILE = r"file://(/[^/\s][^\s/]*)+"
MAX_URI_CHARS = 1024  # S3's own limit on a key

SourceUri = Annotated[
    str,
    Field(pattern=f"^({_HF}|{_S3}|{_FILE})$", max_length=MAX_URI_CHARS),
    Expect(
        "hf://repo[@revision], s3://bucket/prefix or file:///absolute/path",
        "no spaces, no slash at the end",
    ),
]
StorageUri = Annotated[
    str,
    Field(pattern=f"^({_S3}|{_FILE})$", max_length=MAX_URI_CHARS),
    Expect("s3://bucket/prefix or file:///absolute/path", "no spaces, no slash at the end"),
]

DNS_LABEL = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"
MAX_STAGE_NAME_CHARS = 32  # leaves room for the chain's name and a hash in the 63 of a Job's name
StageName = Annotated[
    str,
    Field(pattern=DNS_LABEL, min_length=1, max_length=MAX_STAGE_NAME_CHARS),
    Expect("a DNS label: lowercase letters, digits and '-', starting with a letter, 32 at most", "for example tiny-2"),
]

DURATION = r"^([0-9]+h([0-9]+m)?([0-9]+s)?|[0-9]+m([0-9]+s)?|[0-9]+s)$"


def duration_seconds(text: str) -> int:
    """Seconds of a duration such as `6h`, `1h30m` or `90s`."""
    unit_s = {"h": 3600, "m": 60, "s": 1}
    return sum(int(number) * unit_s[unit] for number, unit in re.findall(r"([0-9]+)([hms])", text))


def _positive(text: str) -> str:
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
                {"rule": "duration(self) > duration('0s')", "message": "expected a duration above zero"}
            ]
        },
    ),
    AfterValidator(_positive),
    Expect("a duration such as 6h, 1h30m or 90s", "write whole hours, minutes and seconds in that order"),
]

Share = Annotated[
    float, Field(ge=0, le=1), Expect("a share from 0 to 1", "for five points write 0.05, for ninety percent 0.9")
]

Text = Annotated[str, Field(min_length=1, max_length=256), Expect("text of 1 to 256 characters", "in YAML, quote it")]
