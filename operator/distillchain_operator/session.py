"""The HTTP session of kopf. It asks for metadata only, and keeps from kopf what would end it.

kopf parses each answer with Python's json, which fails at about 1,000 levels of nesting. The API server stores chains
of 10,000 levels and repeats them in metadata.managedFields, so this session removes what kopf does not need before kopf
parses it. kopf also ends at a refusal (a CRD or a Role that was deleted, an API server that is overloaded for a minute)
and at an ERROR of a watch other than 410. If a connection breaks, kopf tries again for ever, so it is shown that.
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any, Self

import aiohttp
import kopf
from aiohttp.connector import Connection

from distillchain_api import PLURAL, deep_json

log = logging.getLogger(__name__)

METADATA = "application/json;as={kind};g=meta.k8s.io;v=v1"
BUFFER_BYTES = 64 * 1024
EXPIRED = 410


def open_session(info: kopf.ConnectionInfo, *, is_news: Callable[[dict[str, Any]], bool]) -> kopf.AiohttpSession:
    """A session with these credentials; kopf closes it. Must be called in kopf's event loop.

    Args:
        is_news: whether kopf sees a chain of a list, given its metadata. kopf takes a millisecond and some kilobytes
            for each.
    """

    class _News(_MetadataResponse):
        async def json(self, **more: Any) -> Any:
            document = await super().json(**more)
            if "items" in document and self.url.name == PLURAL:
                document["items"] = [item for item in document["items"] if is_news(item.get("metadata", {}))]
            return document

    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, ssl=info.as_ssl_context()),
        headers=info.as_http_headers(),
        proxy=info.proxy_url,
        trust_env=info.trust_env,
        middlewares=(_ask_for_metadata,),
        response_class=_News,
    )
    return kopf.AiohttpSession(aiohttp_session=session, server=info.server, expiration=info.expiration)


async def _ask_for_metadata(request: aiohttp.ClientRequest, send: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    """Specs and statuses of thousands of chains would take hundreds of megabytes."""
    if request.url.name != PLURAL:
        return await send(request)
    is_watch = request.url.query.get("watch") == "true"
    kind = "PartialObjectMetadata" if is_watch else "PartialObjectMetadataList"
    request.headers["Accept"] = METADATA.format(kind=kind)
    response = await send(request)
    # After 401, kopf logs in again; 429 is the only other refusal that it survives.
    if response.status >= 400 and response.status not in (401, 429):
        log.warning("watch refused, will be retried", extra={"path": request.url.path, "status": response.status})
        response.close()
        raise aiohttp.ClientConnectionError(f"{request.url.path}: HTTP {response.status}")
    return response


class _MetadataResponse(aiohttp.ClientResponse):
    """A response whose objects have no managedFields."""

    async def start(self, connection: Connection) -> Self:
        """Receives the headers; kopf reads a watch line by line from `content`."""
        await super().start(connection)
        self.content = _Changes(self.content)  # type: ignore[assignment]  # it offers all that kopf and aiohttp use
        return self

    async def json(self, **_: Any) -> Any:
        """The decoded body; kopf reads lists and errors this way."""
        document = _load(await self.text())
        if "items" in document:
            # An empty list of metadata has null here, which kopf does not expect.
            document["items"] = document["items"] or []
            for item in document["items"]:
                _strip(item)
        return document


class _Changes:
    """The body of a watch, with objects without managedFields."""

    def __init__(self, body: aiohttp.StreamReader) -> None:
        self._body = body

    def __getattr__(self, name: str) -> Any:
        return getattr(self._body, name)

    async def iter_chunked(self, _size: int) -> AsyncIterator[bytes]:
        """Whole lines, one change each."""
        buffer = b""
        async for data in self._body.iter_chunked(BUFFER_BYTES):
            *lines, buffer = (buffer + data).split(b"\n")
            for line in filter(None, lines):
                yield _strip_line(line) + b"\n"
        # A connection that broke may leave half a line, which kopf would not understand.


def _strip_line(line: bytes) -> bytes:
    change = _load(line.decode(errors="replace"))
    _strip(change.get("object") or {})
    if change.get("type") == "ERROR":
        log.info("watch ended", extra={"error": change.get("object", {}).get("message", "")})
        # Whatever it was: kopf lists all objects and watches again.
        change["object"] = {**(change.get("object") or {}), "code": EXPIRED}
    return json.dumps(change).encode()


def _load(text: str) -> dict[str, Any]:
    try:
        return dict(deep_json.loads(text))
    except ValueError as error:
        raise aiohttp.ClientPayloadError(f"the API server sent no JSON object: {text[:200]}") from error


def _strip(item: dict[str, Any]) -> None:
    item.get("metadata", {}).pop("managedFields", None)
