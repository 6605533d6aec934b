"""What a server answered instead of doing what it was asked, and the errors that repeating a request may cure."""

from __future__ import annotations

import contextlib
import datetime
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

from distillchain_store.errors import StorageUnavailable

PASSING_STATUS = {408, 409, 429}  # request timeout, conflict, too many requests


class Transient(StorageUnavailable):
    """The request failed and may succeed when it is repeated."""

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(f"{what}; {remedy}")
        self.what, self.remedy = what, remedy


class CredentialsExpired(Transient):
    """The credentials must be read again before the request is repeated."""


@dataclass(frozen=True)
class Answer:
    """What an S3 server answered instead of doing what it was asked."""

    code: str
    words: str
    status: int
    server_time: datetime.datetime | None

    @property
    def said(self) -> str:
        """Code and words, as messages quote them."""
        return f"{self.code}: {self.words}" if self.words else self.code


def parse_answer(response: Any) -> Answer:
    """Reads the `response` of a botocore ClientError, whose parts may all be absent."""
    error, metadata = response.get("Error", {}), response.get("ResponseMetadata", {})
    status = int(metadata.get("HTTPStatusCode", 0))
    # AWS puts its time into the body of RequestTimeTooSkewed; every answer should have the header Date.
    server_time = error.get("ServerTime") or metadata.get("HTTPHeaders", {}).get("date")
    return Answer(
        str(error.get("Code") or status),
        str(error.get("Message", "")),
        status,
        _parse_time(server_time),
    )


def _parse_time(text: object) -> datetime.datetime | None:
    """ISO 8601 as in S3's XML, or the date of an HTTP header."""
    for parse in (datetime.datetime.fromisoformat, parsedate_to_datetime):
        with contextlib.suppress(ValueError, TypeError):
            found = parse(str(text))
            # A time without a zone is in UTC: both formats say so.
            return found if found.tzinfo else found.replace(tzinfo=datetime.UTC)
    return None
