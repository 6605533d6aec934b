"""The HTTP session of kopf. It asks for metadata only, and keeps from kopf what would end it.

kopf parses each answer with Python's json, which fails at about 1,000 levels of nesting. The API server stores chains
of 10,000 levels and repeats them in metadata.managedFields, so this session removes what kopf does not need before kopf
parses it. kopf also ends at a refusal (a CRD or a Role that was deleted, an API server that is overloaded for a minute)
and at an ERROR of a watch other than 410. If a connection breaks, kopf tries again for ever, so it is shown that.

Noted here is what kopf does not report: the chains of a complete list, that a watch works, and that it is refused.
"""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import aiohttp
import kopf
from aiohttp.connector import Connection

from distillchain_api import PLURAL, deep_json
from distillchain_operator.watch.existing import ExistingChains

log = logging.getLogger(__name__)

METADATA = "application/json;as={kind};g=meta.k8s.io;v=v1"
BUFFER_BYTES = 64 * 1024
EXPIRED = 410


@dataclass(frozen=True)
class Notes:
    """What is noted of the answers that kopf gets.

    Attributes:
        is_news: whether kopf sees a chain of a list, given its metadata. kopf takes a millisecond and some kilobytes
            for each.
        existing: the chains of lists and watches.
        refused: called with each namespace whose list or watch was refused; None: the whole cluster.
    """

    is_news: Callable[[dict[str, Any]], bool]
    existing: ExistingChains
    refused: Callable[[str | None, int], None]


def open_session(info: kopf.ConnectionInfo, notes: Notes) -> kopf.AiohttpSession:
    """A session with these credentials; kopf closes it. Must be called in kopf's event loop."""

    class _NotedResponse(_Response):
        pass

    _NotedResponse.notes = notes
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, ssl=info.as_ssl_context()),
        headers=info.as_http_headers(),
        proxy=info.proxy_url,
        trust_env=info.trust_env,
        middlewares=(functools.partial(_ask_for_metadata, notes),),
        response_class=_NotedResponse,
    )
    return kopf.AiohttpSession(aiohttp_session=session, server=info.server, expiration=info.expiration)


async def _ask_for_metadata(
    notes: Notes, request: aiohttp.ClientRequest, send: aiohttp.ClientHandlerType
) -> aiohttp.ClientResponse:
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
        notes.refused(_namespace_of(request.url.path), response.status)
        raise aiohttp.ClientConnectionError(f"{request.url.path}: HTTP {response.status}")
    return response


def _namespace_of(path: str) -> str | None:
    """The namespace of a list or watch; None: it is about the whole cluster."""
    *_, kind, name, _ = path.split("/")
    return name if kind == "namespaces" else None


class _Response(aiohttp.ClientResponse):
    """A response whose objects have no managedFields."""

    notes: ClassVar[Notes]

    async def start(self, connection: Connection) -> Self:
        """Receives the headers; kopf reads a watch line by line from `content`."""
        await super().start(connection)
        if self.url.name == PLURAL and self.status == 200:
            note = functools.partial(self.notes.existing.note_change, _namespace_of(self.url.path))
            # It offers all that kopf and aiohttp use.
            self.content = _Changes(self.content, note)  # type: ignore[assignment]
        return self

    async def json(self, **_: Any) -> Any:
        """The decoded body; kopf reads lists and errors this way."""
        document = _load(await self.text())
        if "items" in document:
            # An empty list of metadata has null here, which kopf does not expect.
            document["items"] = document["items"] or []
            for item in document["items"]:
                _strip(item)
            if self.url.name == PLURAL:
                self._note_page(document)
        return document

    def _note_page(self, page: dict[str, Any]) -> None:
        self.notes.existing.note_page(
            _namespace_of(self.url.path),
            page["items"],
            is_first="continue" not in self.url.query,
            is_last=not page["metadata"].get("continue"),
        )
        page["items"] = [item for item in page["items"] if self.notes.is_news(item.get("metadata", {}))]


class _Changes:
    """The body of a watch, with objects without managedFields."""

    def __init__(self, body: aiohttp.StreamReader, note: Callable[[str, dict[str, Any]], None]) -> None:
        self._body, self._note = body, note

    def __getattr__(self, name: str) -> Any:
        return getattr(self._body, name)

    async def iter_chunked(self, _size: int) -> AsyncIterator[bytes]:
        """Whole lines, one change each."""
        buffer = b""
        async for data in self._body.iter_chunked(BUFFER_BYTES):
            *lines, buffer = (buffer + data).split(b"\n")
            for line in filter(None, lines):
                change = _load(line.decode(errors="replace"))
                _strip(change.get("object") or {})
                self._note(change.get("type", ""), change.get("object") or {})
                yield json.dumps(_shown(change)).encode() + b"\n"
        # A connection that broke may leave half a line, which kopf would not understand.


def _shown(change: dict[str, Any]) -> dict[str, Any]:
    """A change as kopf sees it."""
    if change.get("type") == "ERROR":
        log.info("watch ended", extra={"error": change.get("object", {}).get("message", "")})
        # Whatever it was: kopf lists all objects and watches again.
        change["object"] = {**(change.get("object") or {}), "code": EXPIRED}
    return change


def _load(text: str) -> dict[str, Any]:
    try:
        return dict(deep_json.loads(text))
    except ValueError as error:
        raise aiohttp.ClientPayloadError(f"the API server sent no JSON object: {text[:200]}") from error


def _strip(item: dict[str, Any]) -> None:
    item.get("metadata", {}).pop("managedFields", None)
