"""An HTTP gateway in front of a real S3 server. A test's rule answers some requests itself, or changes answers: that is
how servers that differ from the real one are made."""

from __future__ import annotations

import http.client
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from cluster.certificates import KeyPair
from cluster.serving import Serving

NOT_FORWARDED = {"connection", "expect", "transfer-encoding"}


@dataclass(frozen=True)
class Request:
    """Header names are lower case."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def deletes_many(self) -> bool:
        return self.method == "POST" and self.has_parameter("delete")

    @property
    def key(self) -> str:
        """Without the bucket."""
        return urlsplit(self.path).path.lstrip("/").partition("/")[2]

    @property
    def is_upload(self) -> bool:
        """Of an object, or of a part of one."""
        return self.method == "PUT" and bool(self.key)

    def has_parameter(self, name: str) -> bool:
        return name in parse_qs(urlsplit(self.path).query, keep_blank_values=True)


@dataclass(frozen=True)
class Answer:
    """
    Attributes:
        lost_bytes: at the end of `body`, which the connection loses.
    """

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    lost_bytes: int = 0

    def with_headers(self, **headers: str) -> Answer:
        return replace(self, headers={**self.headers, **headers})


Forward = Callable[[Request], Answer]
Rule = Callable[[Request, Forward], Answer]


def s3_error(status: int, code: str, message: str = "words of the server") -> Answer:
    body = f"<?xml version='1.0' encoding='UTF-8'?><Error><Code>{code}</Code><Message>{message}</Message></Error>"
    return Answer(status, body.encode(), {"Content-Type": "application/xml"})


class Gateway(Serving):
    """Listens on 127.0.0.1 while the `with` block lasts.

    Args:
        target: http://HOST:PORT of the real server.
        rule: gives the answer to each request, and may be replaced at any time.
        certificate: it serves HTTPS.
    Attributes:
        requests: all so far.
    """

    def __init__(self, target: str, rule: Rule, *, certificate: KeyPair | None = None) -> None:
        self.rule = rule
        self.requests: list[Request] = []
        self._target = urlsplit(target).netloc
        gateway = self

        class Handler(_Handler):
            owner = gateway

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate.certificate, certificate.key)
            server.socket = context.wrap_socket(server.socket, server_side=True)
            server.handle_error = lambda *_: None  # type: ignore[method-assign]  # refused handshakes are the test's
        super().__init__(server)
        self.port = server.server_port
        self.endpoint = f"{'https' if certificate else 'http'}://127.0.0.1:{self.port}"

    def forward(self, request: Request) -> Answer:
        """The real server's answer. The Host header stays, because the signature includes it."""
        connection = http.client.HTTPConnection(self._target, timeout=30)
        try:
            headers = {name: value for name, value in request.headers.items() if name not in NOT_FORWARDED}
            connection.request(request.method, request.path, request.body or None, headers)
            answer = connection.getresponse()
            kept = {name: value for name, value in answer.getheaders() if name.lower() not in NOT_FORWARDED}
            return Answer(answer.status, answer.read(), kept)
        finally:
            connection.close()


class _Handler(BaseHTTPRequestHandler):
    owner: Gateway
    protocol_version = "HTTP/1.1"

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.command, self.path, headers, body)
        self.owner.requests.append(request)
        answer = self.owner.rule(request, self.owner.forward)
        self.send_response_only(answer.status)
        for name, value in answer.headers.items():
            if name.lower() != "content-length" or self.command == "HEAD":
                self.send_header(name, value)
        if self.command != "HEAD":
            self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body[: len(answer.body) - answer.lost_bytes])
        self.close_connection = self.close_connection or bool(answer.lost_bytes)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _serve  # noqa: N815  # the names that http.server looks for

    def log_message(self, *_: object) -> None:
        """Silent: tests look at `requests`."""
