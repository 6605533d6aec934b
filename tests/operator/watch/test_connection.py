"""How the operator reaches the API server."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, tzinfo
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from aiohttp.typedefs import Handler

from distillchain_operator.api_server.clock import ServerClock
from distillchain_operator.api_server.cluster import ApiError
from distillchain_operator.api_server.connection import Connection
from distillchain_operator.settings import BadSetting

URL = "http://api.cluster.example:6443"


@pytest.fixture(autouse=True)
def kubeconfig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = {
        "clusters": [{"name": "c", "cluster": {"server": URL}}],
        "users": [{"name": "u", "user": {}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "c",
    }
    (tmp_path / "config").write_text(json.dumps(content))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    for name in ("http_proxy", "HTTP_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
async def sent(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What a request is sent with."""
    found: list[dict[str, Any]] = []

    async def request(_: aiohttp.ClientSession, *args: object, **more: Any) -> None:
        found.append(more)
        raise aiohttp.ClientError("not sent")

    monkeypatch.setattr(aiohttp.ClientSession, "request", request)
    return found


async def try_a_request(method: str = "GET", *, want: str = "not sent") -> None:
    connection = await Connection.open(answered=lambda *_: None)
    with pytest.raises(ApiError, match=want):
        await connection.request(method, "/version")
    await connection.close()


async def test_requests_name_the_operator(sent: list[dict[str, Any]]):
    await try_a_request()
    assert [found["headers"]["User-Agent"].partition("/")[0] for found in sent] == ["distillchain-operator"]


async def test_a_change_waits_as_long_as_the_api_server_waits_for_webhooks(sent: list[dict[str, Any]]):
    await try_a_request("POST")
    assert sent[0]["timeout"].total > 34


async def test_a_request_without_an_answer_in_time_is_reported_as_that(monkeypatch: pytest.MonkeyPatch):
    async def request(*_: object, **__: object) -> None:
        raise TimeoutError

    monkeypatch.setattr(aiohttp.ClientSession, "request", request)
    await try_a_request(want="GET /version: TimeoutError")


@pytest.mark.parametrize(
    "requested, limited, passes",
    [
        ("requests.nvidia.com/gpu=4", "requests.nvidia.com/gpu=4", True),
        ("requests.nvidia.com/gpu=4", "requests.nvidia.com/gpu=2", False),
        ("limits.memory=1500Mi,pods=1", "limits.memory=2Gi,pods=3", True),
        ("limits.memory=1500Mi,pods=1", "limits.memory=1Gi,pods=3", False),
    ],
)
def test_a_request_beyond_the_whole_quota_is_no_quota_that_is_used_up(requested: str, limited: str, passes: bool):
    used = f"exceeded quota: q, requested: {requested}, used: {limited}, limited: {limited}"
    error = ApiError(403, f'pods "p" is forbidden: {used}')
    assert (error.is_quota, error.is_refusal) == (passes, True)


@pytest.mark.parametrize("name", ["certificate-authority", "client-certificate"])
async def test_a_certificate_that_is_none_is_a_bad_setting(name: str, tmp_path: Path):
    damaged = tmp_path / "damaged.crt"
    damaged.write_text("not a certificate")
    content = json.loads((tmp_path / "config").read_text())
    if name == "certificate-authority":
        content["clusters"][0]["cluster"][name] = str(damaged)
    else:
        content["users"][0]["user"] = {name: str(damaged), "client-key": str(damaged)}
    content["clusters"][0]["cluster"]["server"] = "https://api.cluster.example:6443"
    (tmp_path / "config").write_text(json.dumps(content))
    with pytest.raises(BadSetting, match=r"KUBECONFIG: got .*certificates in PEM"):
        await Connection.open(answered=lambda *_: None)


@pytest.mark.parametrize("exempt, proxy", [("", "http://127.0.0.1:9"), (".cluster.example", None)])
async def test_the_proxy_of_the_environment_is_used_unless_the_address_is_exempt(
    exempt: str, proxy: str | None, sent: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", exempt)
    await try_a_request()
    assert [found.get("proxy") for found in sent] == [proxy]


@pytest.mark.parametrize(
    "status, retry_after, refusals, want, tries",
    [
        pytest.param(429, "0", 10, 200, 11, id="too many requests"),
        pytest.param(503, "0", 10, 200, 11, id="not ready"),
        pytest.param(429, "0", 11, 429, 11, id="busy for too long"),
        pytest.param(503, "", 1, 503, 1, id="it does not say when"),
        pytest.param(429, "Wed, 21 Oct 2015 07:28:00 GMT", 1, 429, 1, id="a date"),
        pytest.param(409, "0", 1, 409, 1, id="refused for another reason"),
    ],
)
async def test_a_request_is_sent_again_if_the_api_server_is_busy_and_says_when(
    status: int, retry_after: str, refusals: int, want: int, tries: int, tmp_path: Path
):
    sent: list[dict[str, Any]] = []

    async def answer(request: web.Request) -> web.Response:
        sent.append(await request.json())
        headers = {"Retry-After": retry_after} if retry_after else {}
        return web.json_response({}) if len(sent) > refusals else web.json_response({}, status=status, headers=headers)

    got, _ = await post_a_job(answer, tmp_path)
    assert (got, sent) == (want, [{"kind": "Job"}] * tries)


async def post_a_job(answer: Handler, tmp_path: Path) -> tuple[int, ServerClock]:
    """The HTTP code of the answer, and the clock after it."""
    application = web.Application()
    application.router.add_post("/jobs", answer)
    async with TestServer(application) as server:
        content = (tmp_path / "config").read_text().replace(URL, str(server.make_url("")))
        (tmp_path / "config").write_text(content)
        connection = await Connection.open(answered=lambda *_: None)
        got, _ = await connection.exchange("POST", "/jobs", body={"kind": "Job"})
        await connection.close()
    return got, connection.clock


@pytest.mark.parametrize("off_by_h", [1, -1])
async def test_the_time_is_that_of_the_api_server_if_the_clock_of_the_node_is_wrong(off_by_h: int, tmp_path: Path):
    off_by = timedelta(hours=off_by_h)

    async def answer(_: web.Request) -> web.Response:
        return web.json_response({}, headers={"Date": format_datetime(datetime.now(UTC) + off_by, usegmt=True)})

    _, clock = await post_a_job(answer, tmp_path)
    assert abs(clock.now() - datetime.now(UTC) - off_by) < timedelta(minutes=5)


@pytest.mark.parametrize("date", ["", "now", "Thu, 99 Jan 2026 12:00:00 GMT", "Thu, 01 Jan 2026 12:00:03 GMT"])
def test_the_time_is_that_of_the_node_if_the_api_server_names_none_or_nearly_the_same(
    date: str, monkeypatch: pytest.MonkeyPatch
):
    class Noon(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Noon:
            return cls(2026, 1, 1, 12, tzinfo=tz)

    monkeypatch.setattr("distillchain_operator.api_server.clock.datetime", Noon)
    clock = ServerClock()
    clock.note(date)
    assert clock.now() == datetime(2026, 1, 1, 12, tzinfo=UTC)
