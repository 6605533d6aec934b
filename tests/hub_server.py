"""A model hub on this machine, for hf:// names: the part of the Hugging Face Hub's HTTP interface that its clients call.

The real one cannot be reached by tests. Its routes are those of huggingface_hub's HfApi: `/api/{kind}/{repo}[/revision/R]`,
`/tree/R`, `/paths-info/R`, and `/resolve/R/FILE` with the headers X-Repo-Commit, ETag and (for weights) X-Linked-Etag.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

API = re.compile(r"^/api/(models|datasets)/([^/]+/[^/]+)(?:/(revision|tree|paths-info)/([^/]+)(?:/(.*))?)?$")
RESOLVE = re.compile(r"^/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)$")


@dataclass
class Hub:
    """Repositories are folders: `<root>/models/org/name`, `<root>/datasets/org/name`. One commit each, branch main."""

    root: Path
    url: str = ""
    gated: set[str] = field(default_factory=set)
    """Repositories that need HF_TOKEN."""
    broken: bool = False
    """Whether every answer is 503."""
    requests: list[str] = field(default_factory=list)

    def folder(self, kind: str, repo: str) -> Path:
        return self.root / kind / repo

    def commit(self, kind: str, repo: str) -> str:
        """40 hex digits that follow the content."""
        digest = hashlib.sha1(usedforsecurity=False)
        for path in self.files(kind, repo):
            digest.update(path.name.encode() + path.read_bytes())
        return digest.hexdigest()

    def files(self, kind: str, repo: str) -> list[Path]:
        return sorted(path for path in self.folder(kind, repo).rglob("*") if path.is_file())


@contextmanager
def serve_hub(root: Path) -> Iterator[Hub]:
    """A hub on a port of the loopback interface."""
    hub = Hub(root)

    class Handler(_Handler):
        served = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    served: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def log_message(self, *_: Any) -> None:
        """Silent: tests look at `requests`."""

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path)
        path = unquote(url.path)
        self.served.requests.append(f"{self.command} {path}")
        if self.served.broken:
            return self._send(503, b"down for maintenance")
        if found := API.match(path):
            kind, repo, what, revision, below = found.groups()
            if self._refused(kind, repo, revision):
                return None
            return self._api(kind, repo, what, below or "", parse_qs(url.query), body)
        if found := RESOLVE.match(path):
            kind = "datasets" if found[1] else "models"
            if self._refused(kind, found[2], found[3]):
                return None
            return self._file(kind, found[2], found[4])
        return self._send(404, b"{}")

    def _refused(self, kind: str, repo: str, revision: str | None) -> bool:
        hub = self.served
        if not hub.folder(kind, repo).is_dir():
            self._send(401, b'{"error":"Repository not found"}', {"X-Error-Code": "RepoNotFound"})
        elif repo in hub.gated and self.headers.get("Authorization") != "Bearer hf_right":
            self._send(403, b'{"error":"gated"}', {"X-Error-Code": "GatedRepo"})
        elif revision not in (None, "main", hub.commit(kind, repo)):
            self._send(404, b'{"error":"no such revision"}', {"X-Error-Code": "RevisionNotFound"})
        else:
            return False
        return True

    def _api(
        self, kind: str, repo: str, what: str | None, below: str, query: dict[str, list[str]], body: bytes
    ) -> None:
        hub = self.served
        folder = hub.folder(kind, repo)
        if what in (None, "revision"):
            names = [str(path.relative_to(folder)) for path in hub.files(kind, repo)]
            document = {
                "id": repo,
                "sha": hub.commit(kind, repo),
                "siblings": [{"rfilename": name} for name in names],
                "private": False,
                "tags": [],
                "downloads": 0,
                "lastModified": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z"),
            }
            return self._json(document)
        if what == "paths-info":
            wanted = json.loads(body)["paths"] if body.startswith(b"{") else parse_qs(body.decode())["paths"]
            return self._json([self._entry(folder, folder / name) for name in wanted if (folder / name).exists()])
        start = folder / below
        if not start.is_dir():
            return self._send(404, b'{"error":"no such path"}', {"X-Error-Code": "EntryNotFound"})
        recursive = query.get("recursive", ["false"])[0].lower() in ("true", "1")
        found = start.rglob("*") if recursive else start.iterdir()
        return self._json([self._entry(folder, path) for path in sorted(found)])

    def _entry(self, folder: Path, path: Path) -> dict[str, Any]:
        name = str(path.relative_to(folder))
        if path.is_dir():
            return {"type": "directory", "oid": "0" * 40, "size": 0, "path": name}
        return {"type": "file", "oid": _sha1(path), "size": path.stat().st_size, "path": name}

    def _file(self, kind: str, repo: str, name: str) -> None:
        path = self.served.folder(kind, repo) / name
        if not path.is_file():
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
        headers = {
            "X-Repo-Commit": self.served.commit(kind, repo),
            "ETag": f'"{_sha1(path)}"',
            "Accept-Ranges": "bytes",
        }
        content = path.read_bytes()
        if wanted := re.match(r"bytes=(\d+)-(\d*)$", self.headers.get("Range") or ""):
            first, last = int(wanted[1]), int(wanted[2] or len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{min(last, len(content) - 1)}/{len(content)}"
            return self._send(206, content[first : last + 1], headers)
        return self._send(200, content, headers)

    def _json(self, document: Any) -> None:
        self._send(200, json.dumps(document).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _sha1(path: Path) -> str:
    return hashlib.sha1(path.read_bytes(), usedforsecurity=False).hexdigest()
