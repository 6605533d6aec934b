"""HTTP to the API server by the official async client: plain JSON data, and every error as an `ApiError`."""

from __future__ import annotations

import asyncio
import os
import re
import ssl
import urllib.request
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from importlib.metadata import version
from typing import Any, NamedTuple, Self, TypedDict, Unpack
from urllib.parse import urlsplit

import aiohttp
from kubernetes.aio import client, config

from distillchain_api import deep_json
from distillchain_api.resource.quantities import quantity_value
from distillchain_operator.api_server.clock import ServerClock
from distillchain_operator.api_server.sockets import OpenSockets
from distillchain_operator.settings import BadSetting

REQUEST_TIMEOUT_S = 30
# Of a change, which slow webhooks may hold up. The API server gives it up after 34 s (measured) and says so.
CHANGE_TIMEOUT_S = 60
WATCH_TIMEOUT_S = 300  # then the API server ends a watch, and a dead connection is noticed
# A bookmark comes about every minute, so a watch that is silent for longer is on a dead connection.
SILENCE_S = 150
# Of a request that the API server, or a proxy in front of it, is too busy for. client-go sends it again as often.
# A look takes several requests, so while half of them are refused, hardly any look would succeed.
RETRIES = 10
LONGEST_WAIT_S = 10
BUFFER_BYTES = 64 * 1024
PAGE_BYTES = 2 * 1024 * 1024  # of an answer that are received before they are read
JSON = "application/json, */*"
_QUOTA = re.compile(r"requested: (\S+=\S+), used: \S+, limited: (\S+=\S+)$")


class Content(TypedDict, total=False):
    """What a request may have besides its path."""

    query: dict[str, str] | None
    body: dict[str, Any] | None
    content_type: str
    accept: str


class _Answer(NamedTuple):
    """An answer to a request.

    Attributes:
        again_in_s: after how many seconds to send the request again, because it was not handled now; None: it was.
    """

    status: int
    text: str
    again_in_s: float | None


class ApiError(Exception):
    """The API server refused a request, or could not be reached (status 0)."""

    is_expected = True  # the queue logs it without a traceback

    def __init__(self, status: int, message: str, *, reason: str = "", causes: frozenset[str] = frozenset()) -> None:
        self.status, self.message, self.reason, self.causes = status, message, reason, causes
        super().__init__(message)

    @property
    def is_namespace_terminating(self) -> bool:
        """The namespace is being deleted, so nothing can be created in it."""
        return "NamespaceTerminating" in self.causes

    @property
    def is_refusal(self) -> bool:
        """The object is invalid, or admission or a quota forbids it; the same request would be refused again."""
        if self.is_too_early:
            return False
        return self.status in (400, 403, 413, 422)  # 413: larger than the API server accepts

    @property
    def is_too_early(self) -> bool:
        """The cluster is not ready for it yet: the CRD was installed, or the namespace created, a moment ago."""
        # They have no reason or cause of their own: they are Forbidden, like a missing right, with such a text.
        texts = (
            "cannot find RESTMapping",  # the admission of owners asks for new kinds every 30 s
            'serviceaccount "default" not found',  # its controller creates it in each namespace
        )
        return self.status == 403 and any(text in self.message for text in texts)

    @property
    def is_quota(self) -> bool:
        """The namespace's quota is used up; other work may free some. More than the whole quota is never free."""
        # A used-up quota has no reason of its own: it is Forbidden, like a missing right, with this text.
        return self.status == 403 and "exceeded quota" in self.message and not _is_beyond_quota(self.message)

    @property
    def has_unknown_field(self) -> bool:
        """The object has a field that the API server does not know."""
        # The API server's strict decoder gives no reason or cause for it, only this text.
        return self.status in (400, 422) and "unknown field" in self.message


class Connection:
    """One connection to the API server.

    Args:
        answered: called with the method and HTTP code of every request; code 0: there was no answer.

    Attributes:
        clock: that of the API server.
    """

    def __init__(self, api: client.ApiClient, sockets: OpenSockets, *, answered: Callable[[str, int], None]) -> None:
        self._api = api
        self._sockets = sockets
        self._answered = answered
        self.clock = ServerClock()

    @classmethod
    async def open(cls, *, answered: Callable[[str, int], None]) -> Self:
        """Connects by $KUBECONFIG, else as the pod's service account, else by ~/.kube/config.

        Raises: BadSetting.
        """
        kubeconfig = os.environ.get("KUBECONFIG")
        try:
            # Set in every pod; elsewhere load_incluster_config would raise.
            if not kubeconfig and os.environ.get("KUBERNETES_SERVICE_HOST"):
                config.load_incluster_config()
            else:
                await config.load_kube_config(config_file=kubeconfig)
            settings = client.Configuration.get_default_copy()
            settings.proxy = settings.proxy or _proxy_of(settings.host)
            # Both read the certificates.
            trust, api = _trust(settings), client.ApiClient(settings)
        except (config.ConfigException, OSError) as error:
            raise BadSetting(
                f"KUBECONFIG: got {kubeconfig or ''!r}, expected the path of a kubeconfig with a current context and "
                f"certificates in PEM, or none in a pod with a service account ({error})"
            ) from error
        # The API server takes the name from it as the manager of the fields that are written.
        api.user_agent = f"distillchain-operator/{version('distillchain')}"
        sockets = OpenSockets()
        # Without a limit: each namespace has two watches. The number of workers limits the other requests.
        connector = aiohttp.TCPConnector(limit=0, ssl=trust, socket_factory=sockets.create)
        # The client's own session looks for a proxy and a .netrc at each request, which took a tenth of the CPU time.
        await api.rest_client.close()
        api.rest_client.pool_manager = aiohttp.ClientSession(connector=connector, read_bufsize=PAGE_BYTES)
        return cls(api, sockets, answered=answered)

    async def close(self) -> None:
        """Closes it and every socket of it."""
        await self._api.close()
        await self._sockets.close()

    async def request(self, method: str, path: str, **content: Unpack[Content]) -> dict[str, Any]:
        """The JSON data of an answer. Raises: ApiError."""
        status, text = await self.exchange(method, path, **content)
        document = _parse(text)
        if not 200 <= status < 300:
            raise _error(status, document, f"{method} {path}: HTTP {status}")
        return document

    async def exchange(self, method: str, path: str, **content: Unpack[Content]) -> tuple[int, str]:
        """The HTTP code and the text of an answer. Raises: ApiError if there is none."""
        answer = await self._send(method, path, **content)
        for _ in range(RETRIES):
            if answer.again_in_s is None:
                break
            await asyncio.sleep(answer.again_in_s)
            answer = await self._send(method, path, **content)
        return answer.status, answer.text

    async def _send(
        self,
        method: str,
        path: str,
        *,
        query: dict[str, str] | None = None,
        body: dict[str, Any] | None = None,
        content_type: str = "application/json",
        accept: str = JSON,
    ) -> _Answer:
        total_s = REQUEST_TIMEOUT_S if method == "GET" else CHANGE_TIMEOUT_S
        try:
            response = await self._open(
                method,
                path,
                query=query,
                body=body,
                headers={"Accept": accept, "Content-Type": content_type},
                limits=aiohttp.ClientTimeout(total=total_s, sock_connect=REQUEST_TIMEOUT_S),
            )
            self.clock.note(response.headers.get("Date", ""))
            # A trainer's log may hold bytes that are not UTF-8.
            text = (await response.read()).decode(errors="replace")
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            self._answered(method, 0)
            raise _no_answer(method, path, error) from error
        self._answered(method, response.status)
        return _Answer(response.status, text, _again_in_s(response))

    async def watch(self, path: str, query: dict[str, str]) -> AsyncGenerator[dict[str, Any]]:
        """The changes of a watch, until the API server ends it.

        Raises: ApiError if it is refused or breaks off.
        """
        query = {**query, "watch": "true", "allowWatchBookmarks": "true", "timeoutSeconds": str(WATCH_TIMEOUT_S)}
        limits = aiohttp.ClientTimeout(total=None, sock_connect=REQUEST_TIMEOUT_S, sock_read=SILENCE_S)
        try:
            response = await self._open("GET", path, query=query, body=None, headers={"Accept": JSON}, limits=limits)
            self._answered("GET", response.status)
            async with response:
                if response.status != 200:
                    raise _error(response.status, _parse(await response.text(errors="replace")), f"watch of {path}")
                async for line in _lines(response):
                    yield _parse(line.decode(errors="replace"))
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _no_answer("watch of", path, error) from error

    async def _open(
        self,
        method: str,
        path: str,
        *,
        query: dict[str, str] | None,
        body: dict[str, Any] | None,
        headers: dict[str, str],
        limits: aiohttp.ClientTimeout,
    ) -> aiohttp.ClientResponse:
        response: aiohttp.ClientResponse = await self._api.call_api(
            path,
            method,
            query_params=list((query or {}).items()),
            header_params=headers,
            body=body,
            auth_settings=["BearerToken"],
            _preload_content=False,
            _request_timeout=limits,
        )
        return response


def _again_in_s(response: aiohttp.ClientResponse) -> float | None:
    wait = response.headers.get("Retry-After", "")
    is_busy = response.status == 429 or response.status >= 500
    # A proxy may write a date instead.
    return min(float(wait), LONGEST_WAIT_S) if is_busy and wait.isdecimal() else None


def _trust(settings: client.Configuration) -> ssl.SSLContext:
    """Whom a connection with these settings trusts, and with which certificate."""
    context = ssl.create_default_context(cafile=settings.ssl_ca_cert)
    if settings.cert_file:
        context.load_cert_chain(settings.cert_file, keyfile=settings.key_file)
    if not settings.verify_ssl:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if settings.disable_strict_ssl_verification:
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context


def _proxy_of(url: str) -> str | None:
    """The proxy that the environment names for an address."""
    address = urlsplit(url)
    if urllib.request.proxy_bypass(address.netloc):
        return None
    return urllib.request.getproxies().get(address.scheme)


async def _lines(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    buffer = b""
    async for data in response.content.iter_chunked(BUFFER_BYTES):
        *lines, buffer = (buffer + data).split(b"\n")
        for line in filter(None, lines):
            yield line
    # A connection that broke may leave half a line.


def _parse(text: str) -> dict[str, Any]:
    try:
        return dict(deep_json.loads(text))
    except ValueError:
        # A proxy in front of the API server may answer with HTML.
        return {"message": text[:500]}


def _error(status: int, document: dict[str, Any], what: str) -> ApiError:
    causes = (document.get("details") or {}).get("causes") or []
    reasons = frozenset(cause.get("reason", "") for cause in causes)
    return ApiError(status, document.get("message") or what, reason=document.get("reason", ""), causes=reasons)


def _is_beyond_quota(message: str) -> bool:
    """Whether a request needs more than a quota has in all: `requested: pods=4, used: pods=0, limited: pods=2`."""
    found = _QUOTA.search(message)
    if found is None:
        return False
    requested, limited = (dict(part.split("=") for part in text.split(",")) for text in found.groups())
    amounts = ((quantity_value(amount), quantity_value(limited.get(name, ""))) for name, amount in requested.items())
    return any(need is not None and most is not None and need > most for need, most in amounts)


def _no_answer(method: str, path: str, error: Exception) -> ApiError:
    # The text of a TimeoutError is empty.
    return ApiError(0, f"{method} {path}: {str(error) or type(error).__name__}")
