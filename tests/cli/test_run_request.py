"""A request to run stages again, written while another one waits for the operator."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml

from chain_builders import a_document
from cli.parts import distillchain_here
from cli.test_kubeconfig import KUBECONFIG


class Server(BaseHTTPRequestHandler):
    """An API server of one chain, whose status the operator writes `other_writes` times before the next patch."""

    chain: ClassVar[dict[str, Any]] = {}
    other_writes: ClassVar[int] = 0

    def do_GET(self) -> None:
        self._answer(200, self.chain)

    def do_PATCH(self) -> None:
        wanted = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["metadata"]
        metadata = self.chain["metadata"]
        if Server.other_writes:
            Server.other_writes -= 1
            metadata["resourceVersion"] = str(int(metadata["resourceVersion"]) + 1)
        if wanted["resourceVersion"] != metadata["resourceVersion"]:
            self._answer(409, {"kind": "Status", "reason": "Conflict", "message": "the object has been modified"})
            return
        metadata.setdefault("annotations", {}).update(wanted["annotations"])
        self._answer(200, self.chain)

    def _answer(self, code: int, document: dict[str, Any]) -> None:
        self.send_response(code)
        self.end_headers()
        self.wfile.write(json.dumps(document).encode())

    def log_message(self, *_: object) -> None:
        """Keep stderr free."""


@pytest.mark.parametrize(
    "waits, handled, other_writes, want",
    [
        pytest.param("mini@1", None, 0, "mini,tiny", id="one that waits"),
        pytest.param("again:mini@1", None, 0, "again:mini,tiny", id="one that runs committed stages too"),
        pytest.param("mini@1", "mini@1", 0, "tiny", id="one that was handled"),
        pytest.param("mini@1", None, 2, "mini,tiny", id="the operator writes status meanwhile"),
    ],
)
def test_a_retry_keeps_the_request_that_waits(
    tmp_path: Path, waits: str, handled: str | None, other_writes: int, want: str
):
    failed = [{"name": name, "phase": "Failed", "digest": "d", "job": "j"} for name in ("mini", "tiny")]
    chain = a_document()
    chain["metadata"] |= {"namespace": "ml", "uid": "u", "generation": 1, "resourceVersion": "1"}
    chain["metadata"]["annotations"] = {"distillchain.io/retry": waits}
    Server.chain = chain | {"status": {"phase": "Failed", "stages": failed, "handledRetry": handled}}
    Server.other_writes = other_writes
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    cluster = {"name": "c", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}
    config = tmp_path / "config"
    config.write_text(yaml.safe_dump(KUBECONFIG | {"clusters": [cluster], "current-context": "x"}))

    done = distillchain_here("retry", "relay", "--stage", "tiny", cwd=tmp_path, KUBECONFIG=str(config))

    server.shutdown()
    server.server_close()
    assert done.returncode == 0, done.stderr
    assert Server.chain["metadata"]["annotations"]["distillchain.io/retry"].partition("@")[0] == want
