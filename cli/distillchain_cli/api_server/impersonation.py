"""Acts as another user: adds the headers of `--as` and `--as-group` to every request."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


class Impersonation:
    """urllib3's pool with the headers of an impersonated user.

    The client library holds headers in a dict, and every group needs a header of its own with the same name.
    """

    def __init__(self, pool: Any, user: str, groups: Iterable[str]) -> None:
        self._pool = pool
        self._headers = [("Impersonate-User", user), *(("Impersonate-Group", group) for group in groups)]

    def request(self, method: str, url: str, *, headers: dict[str, str], **more: Any) -> Any:
        """The response of urllib3."""
        from urllib3 import HTTPHeaderDict

        joined = HTTPHeaderDict(headers)
        for name, value in self._headers:
            joined.add(name, value)
        return self._pool.request(method, url, headers=joined, **more)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)
