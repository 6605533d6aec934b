"""The watches when the API server shows what a real one cannot be made to show: odd ERRORs, refusals and half lines."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple, cast

import pytest
from aiohttp import web

from chain_builders import a_job, a_plan, a_pod
from distillchain_api import GROUP, KIND, PLURAL, VERSION
from distillchain_operator.api_server.cluster import ApiError, Cluster
from distillchain_operator.api_server.namespaces import Namespaces
from distillchain_operator.caches.children import Children, Kind, Listed
from distillchain_operator.caches.finished import FinishedChains
from distillchain_operator.chain_key import ChainKey
from distillchain_operator.watch import child_watch as child_watch_module
from distillchain_operator.watch import watching
from distillchain_operator.watch.child_watch import ChildWatch
from distillchain_operator.watch.queue import Urgency
from distillchain_operator.watch.watching import ChainWatches, Reports

DEADLINE_S = 30
VERBS = ["get", "list", "watch"]
GROUPS = {
    f"/apis/{GROUP}/{VERSION}": {PLURAL: KIND},
    "/apis/batch/v1": {"jobs": "Job"},
    "/api/v1": {"pods": "Pod", "namespaces": "Namespace", "events": "Event"},
}


def metadata(name: str, *, labels: dict[str, str] | None = None) -> dict[str, Any]:
    owned = {"namespace": "ml", "name": name, "uid": f"uid-{name}", "generation": 1, "resourceVersion": "5"}
    return {"kind": "PartialObjectMetadata", "metadata": owned | {"labels": labels or {}, "managedFields": [{}]}}


class FakeWatches:
    """Lists and watches of the three kinds; a test fills them."""

    def __init__(self) -> None:
        self.listed: dict[str, list[str]] = {}
        """Objects by plural, as JSON text."""
        self.changes: dict[str, list[bytes]] = {}
        """The bodies of the next watches by plural; when there is none, a watch waits."""
        self.breaks_off = False
        """Whether a watch ends after one change; otherwise it stays open."""
        self.refusals: list[int] = []
        """Codes of the next answers about any kind."""
        self.accepted: dict[str, set[str]] = {}
        self.since: dict[str, list[str]] = {}
        """The versions from which each kind was watched."""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        path, plural = request.path, request.path.rpartition("/")[2]
        if path in GROUPS:
            shape = {"singularName": "", "namespaced": True, "verbs": VERBS}
            resources = [shape | {"name": name, "kind": kind} for name, kind in GROUPS[path].items()]
            return web.json_response({"resources": resources})
        if path == "/api":
            return web.json_response({"versions": ["v1"]})
        if path == "/apis":
            groups = [(GROUP, VERSION), ("batch", "v1")]
            versions = [
                {"name": name, "versions": [{"version": v}], "preferredVersion": {"version": v}} for name, v in groups
            ]
            return web.json_response({"groups": versions})
        self.accepted.setdefault(plural, set()).add(request.headers["Accept"])
        if self.refusals:
            return web.json_response({"kind": "Status"}, status=self.refusals.pop(0))
        if request.query.get("watch") != "true":
            items = ",".join(self.listed.get(plural, []))
            body = (
                f'{{"kind": "PartialObjectMetadataList", "metadata": {{"resourceVersion": "7"}}, "items": [{items}]}}'
            )
            return web.Response(text=body, content_type="application/json")
        self.since.setdefault(plural, []).append(request.query["resourceVersion"])
        response = web.StreamResponse()
        await response.prepare(request)
        waiting = self.changes.setdefault(plural, [])
        while waiting:
            await asyncio.sleep(0.5)
            await response.write(waiting.pop(0))
            if self.breaks_off:
                return response
        await asyncio.sleep(DEADLINE_S)
        return response


@pytest.fixture
async def watches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeWatches]:
    fake = FakeWatches()
    application = web.Application()
    application.router.add_get("/{path:.*}", fake.answer)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    kubeconfig = tmp_path / "kubeconfig"
    cluster = {"name": "c", "cluster": {"server": f"http://{host}:{port}"}}
    context = {"name": "c", "context": {"cluster": "c", "user": "u"}}
    document = {
        "clusters": [cluster],
        "contexts": [context],
        "users": [{"name": "u", "user": {}}],
        "current-context": "c",
    }
    kubeconfig.write_text(json.dumps(document))
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
    monkeypatch.setattr(watching, "RESTART_S", 0.1)
    monkeypatch.setattr(child_watch_module, "RETRY_S", 0.1)
    yield fake
    await runner.cleanup()


class Readable(Cluster):
    """A Cluster whose chains can be listed."""

    async def check_chains(self, namespace: str | None) -> None:
        return


class Watched(NamedTuple):
    """Watches that are running, and the chains that they have reported; `listed` are those of lists."""

    reported: list[ChainKey]
    task: asyncio.Task[None]
    watches: ChainWatches
    listed: list[ChainKey]


@asynccontextmanager
async def watched(finished: FinishedChains, children: Children | None = None) -> AsyncIterator[Watched]:
    reported: list[ChainKey] = []
    listed: list[ChainKey] = []

    def report(key: ChainKey, _version: int = 0) -> None:
        reported.append(key)

    def report_listed(key: ChainKey, version: int) -> None:
        listed.append(key)
        report(key, version)

    async with await Readable.connect() as cluster:
        child_watch = ChildWatch(cluster, children or Children(finished), report=report)
        watches = ChainWatches(
            Namespaces(cluster, ()), reports=Reports(report, report_listed), finished=finished, child_watch=child_watch
        )
        task = asyncio.create_task(watches.run())
        try:
            yield Watched(reported, task, watches, listed)
        finally:
            task.cancel()
            await asyncio.wait([task])


async def until(condition: Callable[[], bool], task: asyncio.Task[None]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            assert not task.done()
            await asyncio.sleep(0.02)


def change(kind: str, item: dict[str, Any]) -> bytes:
    return json.dumps({"type": kind, "object": item}).encode() + b"\n"


OF_RELAY = {"distillchain.io/chain": "relay"}


async def test_only_metadata_is_asked_for_and_an_object_of_any_depth_is_reported(watches: FakeWatches):
    deep = json.dumps(metadata("deep")).replace("[{}]", "[" + '{"f:a":' * 9_000 + "1" + "}" * 9_000 + "]")
    watches.listed = {PLURAL: [deep, json.dumps(metadata("relay"))]}
    watches.changes = {
        "jobs": [change("ADDED", a_finished_job() | {"kind": "Job"})],
        PLURAL: [f'{{"type": "MODIFIED", "object": {deep.replace("deep", "changed")}}}\n{{"type": "MO'.encode()],
    }
    async with watched(FinishedChains()) as (reported, task, _, listed):
        names = {"deep", "relay", "changed"}
        await until(lambda: {key.name for key in reported} == names, task)
        assert {key.name for key in listed} == names - {"changed"}
    form = "application/json;as=PartialObjectMetadata{};g=meta.k8s.io;v=v1"
    assert watches.accepted[PLURAL] == {form.format(""), form.format("List")}


async def test_a_watch_that_ends_with_any_error_starts_again(watches: FakeWatches):
    gone = {"kind": "Status", "code": 410, "message": "too old"}
    odd = {"kind": "Status", "code": 500, "message": "etcd event received with PrevKv=nil"}
    watches.listed = {PLURAL: [json.dumps(metadata("relay"))]}
    watches.breaks_off = True
    watches.changes = {PLURAL: [change("ERROR", gone), change("ERROR", odd), change("ERROR", odd)]}
    async with watched(FinishedChains()) as (reported, task, *_):
        await until(lambda: len(reported) >= 4, task)  # it lists all chains after each error


async def test_the_chains_that_exist_are_those_of_the_last_list_and_of_the_changes_after_it(watches: FakeWatches):
    watches.listed = {PLURAL: [json.dumps(metadata("relay")), json.dumps(metadata("other"))]}
    watches.changes = {
        PLURAL: [
            change("ADDED", metadata("new")) + change("DELETED", metadata("other")),
            change("ERROR", {"kind": "Status", "code": 410, "message": "too old"}),
        ]
    }
    async with watched(FinishedChains()) as (_, task, chain_watches, _):

        def names() -> set[str] | None:
            keys = chain_watches.existing and chain_watches.existing.keys()
            return None if keys is None else {key.name for key in keys}

        await until(lambda: names() == {"relay", "other"}, task)
        watches.listed = {PLURAL: [json.dumps(metadata("late"))]}
        await until(lambda: names() == {"relay", "new"}, task)
        await until(lambda: names() == {"late"}, task)


async def test_a_watch_that_is_refused_is_tried_again(watches: FakeWatches):
    """The CRD or a Role was deleted, or the API server is overloaded."""
    watches.listed = {PLURAL: [json.dumps(metadata("relay"))]}
    watches.refusals = [404, 403, 500, 503, 410, 404]
    async with watched(FinishedChains()) as (reported, task, *_):
        await until(lambda: bool(reported), task)
    assert watches.refusals == []


async def test_kopf_is_started_again_when_it_fails(watches: FakeWatches):
    watches.listed = {PLURAL: ['{"metadata": 5}']}
    async with watched(FinishedChains()) as (reported, task, *_):
        await asyncio.sleep(0.5)
        watches.listed = {PLURAL: [json.dumps(metadata("relay"))]}
        await until(lambda: bool(reported), task)


async def test_a_finished_chain_that_is_listed_again_is_not_reported_but_a_change_of_it_is(watches: FakeWatches):
    done = metadata("relay")
    finished = FinishedChains()
    finished.note(done)
    edited = metadata("other")
    finished.note({"metadata": edited["metadata"] | {"generation": 0}})
    watches.listed = {PLURAL: [json.dumps(done), json.dumps(edited)], "jobs": [json.dumps(a_finished_job())]}
    async with watched(finished) as (reported, task, *_):
        await until(lambda: ChainKey("ml", "other") in reported, task)
        await asyncio.sleep(0.2)
        assert reported == [ChainKey("ml", "other")]
    watches.changes = {PLURAL: [change("MODIFIED", done)]}
    async with watched(finished) as (reported, task, *_):
        await until(lambda: ChainKey("ml", "relay") in reported, task)


def a_finished_job(version: int = 5) -> dict[str, Any]:
    job = a_job(a_plan(), "mini", condition="Complete")
    job["metadata"] |= {"namespace": "ml", "resourceVersion": str(version), "labels": OF_RELAY}
    return job


async def test_jobs_are_watched_from_the_version_of_the_list_and_listed_again_after_an_error(watches: FakeWatches):
    children = Children(FinishedChains())
    watches.listed = {"jobs": [json.dumps(a_finished_job())]}
    bookmark = change("BOOKMARK", {"metadata": {"resourceVersion": "20"}})
    watches.changes = {"jobs": [bookmark, change("ERROR", {"code": 410, "message": "too old"})]}
    watches.breaks_off = True

    def jobs() -> int | None:
        observed = children.observed(ChainKey("ml", "relay"), "")
        return None if observed is None else len(observed.foreign_jobs)

    async with watched(FinishedChains(), children) as (reported, task, *_):
        await until(lambda: jobs() == 1, task)
        watches.listed = {"jobs": []}
        await until(lambda: jobs() == 0, task)
        assert reported.count(ChainKey("ml", "relay")) == 2
    assert watches.since["jobs"][:2] == ["7", "20"]


async def test_while_jobs_cannot_be_watched_nothing_of_them_is_taken_from_the_cache(watches: FakeWatches):
    children = Children(FinishedChains())
    key = ChainKey("ml", "relay")
    watches.listed = {"jobs": ['{"metadata": 5}']}
    async with watched(FinishedChains(), children) as (_, task, *_):
        await asyncio.sleep(0.5)
        assert children.observed(key, "") is None
        watches.listed = {}
        await until(lambda: children.observed(key, "") is not None, task)
    assert children.observed(key, "") is None


class Changing:
    """A Cluster whose watch of pods has these changes, and then waits."""

    def __init__(self, *pods: dict[str, Any]) -> None:
        self.pods = pods
        self.waits = asyncio.Event()

    async def list_children(self, _kind: Kind, _namespace: str | None) -> AsyncIterator[Listed]:
        yield Listed(5, [])

    async def watch_children(self, kind: Kind, _namespace: str | None, *, since: int) -> AsyncIterator[dict[str, Any]]:
        for number, pod in enumerate(self.pods if kind is Kind.PODS else (), start=since + 1):
            pod["metadata"] |= {"namespace": "ml", "resourceVersion": str(number), "labels": OF_RELAY}
            yield {"type": "MODIFIED", "object": pod}
        if kind is Kind.PODS:
            self.waits.set()
        await asyncio.Event().wait()


async def test_the_end_of_a_pod_comes_first_because_its_gpu_is_idle():
    job = a_job(a_plan(), "mini")
    pods = [a_pod(job), a_pod(job, phase="Succeeded", exit_code=0), a_pod(job, number=1, phase="Failed", exit_code=64)]
    cluster = Changing(*pods)
    reported: list[Urgency] = []
    watch = ChildWatch(
        cast("Cluster", cluster),
        Children(FinishedChains()),
        report=lambda key, urgency: reported.append(urgency),
    )
    await watch.watch({None})
    async with asyncio.timeout(DEADLINE_S):
        await cluster.waits.wait()
    watch.stop()
    assert reported == [Urgency.NOW, Urgency.FIRST, Urgency.FIRST]


class Refusing:
    """A Cluster whose watches of Jobs and pods fail with these errors, one after the other, and then wait."""

    def __init__(self, *errors: ApiError | dict[str, Any]) -> None:
        self.lists: Counter[Kind] = Counter()
        self.pauses: list[float] = []
        self.errors = {kind: list(errors) for kind in Kind}
        self.waits = {kind: asyncio.Event() for kind in Kind}

    async def list_children(self, kind: Kind, namespace: str | None) -> AsyncIterator[Listed]:
        self.lists[kind] += 1
        yield Listed(5, [])

    async def watch_children(self, kind: Kind, namespace: str | None, *, since: int) -> AsyncIterator[dict[str, Any]]:
        if not self.errors[kind]:
            self.waits[kind].set()
            await asyncio.Event().wait()
        error = self.errors[kind].pop(0)
        if isinstance(error, ApiError):
            raise error
        yield {"type": "ERROR", "object": error}

    async def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        await asyncio.sleep(0)

    async def run(self) -> list[int]:
        """Watches until no errors are left. Returns: how often each kind was listed."""
        child_watch = ChildWatch(
            cast("Cluster", self), Children(FinishedChains()), report=lambda *_: None, pause=self.pause
        )
        await child_watch.watch({None})
        async with asyncio.timeout(DEADLINE_S):
            await asyncio.gather(*(waits.wait() for waits in self.waits.values()))
        child_watch.stop()
        return list(self.lists.values())


@pytest.mark.parametrize("status", [401, 403, 429, 500, 503])
async def test_a_watch_that_is_refused_again_and_again_rarely_lists_all_objects(status: int):
    cluster = Refusing(*[ApiError(status, "no")] * 11)
    assert await cluster.run() == [3, 3]  # the first list, and one after five refusals each


@pytest.mark.parametrize("status", [400, 410, 504])
async def test_after_a_refusal_that_may_be_about_the_version_all_objects_are_listed(status: int):
    assert await Refusing(*[ApiError(status, "no")] * 3).run() == [4, 4]


async def test_an_error_in_a_watch_lists_all_objects_and_a_lost_connection_does_not():
    assert await Refusing({"code": 500, "message": "odd"}).run() == [2, 2]
    assert await Refusing(*[ApiError(0, "connection refused")] * 11).run() == [1, 1]


async def test_the_pause_before_a_refused_watch_is_tried_again_doubles_up_to_a_minute():
    cluster = Refusing(*[ApiError(429, "too many requests")] * 8)
    await cluster.run()
    longest = [2, 4, 8, 16, 32, 60, 60, 60]
    pauses = sorted(cluster.pauses)
    assert all(most / 2 <= pause <= most for pause, most in zip(pauses, sorted(longest * 2), strict=True))
    assert len(set(pauses)) == len(pauses), "the two watches do not keep step"


@pytest.mark.parametrize("status, level", [(401, "WARNING"), (403, "WARNING"), (429, "INFO")])
async def test_a_missing_right_to_watch_is_a_warning(status: int, level: str, caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO", logger=child_watch_module.__name__)
    await Refusing(ApiError(status, "no")).run()
    assert {record.levelname for record in caplog.records} == {level}
