"""What causes a look at a chain, and what a look reads: own writes cause none, and caches spare the reads."""

from __future__ import annotations

import asyncio
import copy
from typing import Any

import pytest

from chain_builders import a_committed_job, a_document, a_job, a_plan, a_pod
from distillchain_api.retry_request import RETRY_ANNOTATION
from distillchain_api.wire.answer import Progress
from distillchain_operator.api_server.cluster import ApiError
from distillchain_operator.caches import known_chains
from distillchain_operator.caches.children import Children, Kind, Listed
from distillchain_operator.caches.finished import FinishedChains
from distillchain_operator.caches.known_chains import KnownChains
from distillchain_operator.chain_key import ChainKey
from distillchain_operator.jobs.labels import CHAIN_LABEL, PODS_ANNOTATION
from fake_api_server import KEY, FakeApiServer, FakeClock, a_controller


class Counting(FakeApiServer):
    """Counts reads of the chain, and of its Jobs."""

    looks = 0
    reads = 0

    async def get_chain(self, namespace: str, name: str) -> dict[str, Any]:
        self.looks += 1
        return await super().get_chain(namespace, name)

    async def list_jobs(self, namespace: str, chain: str) -> Listed:
        self.reads += 1
        return await super().list_jobs(namespace, chain)


class Watched(Counting):
    """Whose Jobs and pods are watched; `report` is what the watch sees of them."""

    def __init__(self) -> None:
        super().__init__()
        self.children = Children(FinishedChains())
        self._version = 1
        for kind in Kind:
            self.children.follow(kind, None, is_followed=True)

    def report(self, kind: Kind, document: dict[str, Any]) -> None:
        self._version += 1
        document["metadata"] |= {"namespace": "ml", "resourceVersion": str(self._version)}
        document["metadata"]["labels"][CHAIN_LABEL] = "relay"
        self.children.apply(kind, "MODIFIED", document)


def a_running_stage() -> Watched:
    server = Watched()
    job = a_job(a_plan(), "mini", active=1)
    job["metadata"]["annotations"][PODS_ANNOTATION] = "pod-0"
    server.jobs, server.pods = [job], [a_pod(job)]
    server.report(Kind.JOBS, job)
    server.report(Kind.PODS, server.pods[0])
    return server


async def test_a_report_of_the_own_write_causes_no_look_and_a_newer_one_does():
    server = Counting()
    controller = a_controller(server)
    await controller.reconcile(KEY)
    assert (len(server.statuses), server.chain["metadata"]["resourceVersion"]) == (1, "2")
    assert [controller.chains.report(KEY, version) for version in (1, 2, 3)] == [False, False, True]


async def test_a_report_that_is_faster_than_the_answer_to_the_write_causes_no_look():
    class Slow(Counting):
        async def patch_status(self, *args: Any, **more: Any) -> dict[str, Any]:
            assert controller.chains.report(KEY, 2)
            return await super().patch_status(*args, **more)

    server = Slow()
    controller = a_controller(server)
    await controller.reconcile(KEY)
    before = server.looks
    await controller.reconcile(KEY)
    assert server.looks == before


async def test_a_look_that_is_due_is_not_lost_in_reports_of_the_own_write():
    server, clock = a_running_stage(), FakeClock()
    controller = a_controller(server, clock, children=server.children)
    assert await controller.reconcile(KEY) == 60  # to read the progress
    controller.chains.report(KEY, 9)
    controller.chains.note(KEY, {"metadata": {"resourceVersion": "9"}})
    clock.now_s = 20
    assert await controller.reconcile(KEY) == 40


async def test_after_a_look_that_failed_every_report_is_a_reason():
    server = Counting()
    controller = a_controller(server)
    await controller.reconcile(KEY)
    server.refusal = ApiError(0, "cannot connect")
    server.jobs = []
    with pytest.raises(ApiError):
        await controller.reconcile(KEY)
    assert controller.chains.report(KEY, 2)


async def test_a_chain_that_runs_costs_no_read_but_that_of_its_log():
    server, clock = a_running_stage(), FakeClock()
    controller = a_controller(server, clock, children=server.children)
    await controller.reconcile(KEY)
    for now_s in (60, 120, 180):
        clock.now_s = now_s
        server.log = [Progress(stage="mini", phase="Train", step=now_s, of=200).to_json()]
        assert await controller.reconcile(KEY) == 60
    assert (server.log_reads, server.chain["status"]["stages"][0]["progress"]["step"]) == (4, 180)
    assert (server.looks, server.reads) == (1, 0)


async def test_an_edit_is_read_when_it_is_reported():
    server = a_running_stage()
    controller = a_controller(server, children=server.children)
    await controller.reconcile(KEY)
    server.chain["spec"]["suspend"] = True
    server.chain["metadata"]["resourceVersion"] = "7"
    controller.chains.report(KEY, 7)
    await controller.reconcile(KEY)
    assert server.jobs[0]["spec"]["suspend"]
    assert (server.looks, server.reads) == (2, 0)


async def test_no_job_is_created_that_exists_already_but_is_not_in_the_cache():
    server = Watched()
    server.jobs = [a_job(a_plan(), "mini", active=1)]
    await a_controller(server, children=server.children).reconcile(KEY)
    assert (server.reads, len(server.jobs)) == (1, 1)


async def test_the_pod_of_a_new_job_is_tried_once_while_jobs_and_pods_are_read():
    class Waiting(Watched):
        tried = asyncio.Event()

        async def list_jobs(self, namespace: str, chain: str) -> Listed:
            async with asyncio.timeout(60):
                await self.tried.wait()
            return await super().list_jobs(namespace, chain)

        async def dry_run_pod(self, pod: dict[str, Any]) -> None:
            self.tried.set()
            await super().dry_run_pod(pod)

    server = Waiting()
    await a_controller(server, children=server.children).reconcile(KEY)
    assert (server.dry_runs, server.reads, len(server.jobs)) == (1, 1, 1)


async def test_after_an_edit_that_only_the_live_read_sees_the_pod_of_the_edited_chain_is_tried():
    class Tried(Watched):
        def __init__(self) -> None:
            super().__init__()
            self.images: list[str] = []

        async def dry_run_pod(self, pod: dict[str, Any]) -> None:
            self.images.append(pod["spec"]["containers"][0]["image"])
            await super().dry_run_pod(pod)

    server = Tried()
    controller = a_controller(server, children=server.children)
    controller.chains.note(KEY, copy.deepcopy(server.chain))
    server.chain["spec"]["template"]["image"] = "ghcr.io/example/corrected:1"
    await controller.reconcile(KEY)
    assert server.images[1:] == ["ghcr.io/example/corrected:1"]
    assert [
        container["image"] for container in server.jobs[0]["spec"]["template"]["spec"]["containers"]
    ] == server.images[1:]
    assert server.chain["status"]["stages"][0]["phase"] == "Running"


async def test_no_job_of_a_stage_is_created_that_is_committed_by_a_status_that_was_not_reported():
    server = Watched()
    job = a_job(a_plan(), "mini", active=1)
    server.report(Kind.JOBS, job)
    server.jobs = [job]
    controller = a_controller(server, children=server.children)
    await controller.reconcile(KEY)
    # Another operator commits the stage, and then its Job is deleted, as by a TTL.
    document = {**server.chain, "metadata": server.chain["metadata"] | {"resourceVersion": "50"}}
    mini = server.chain["status"]["stages"][0] | {"phase": "Committed", "checkpoint": "s3://b/c"}
    server.chain = document | {"status": server.chain["status"] | {"stages": [mini]}}
    server.jobs = []
    server.children.apply(Kind.JOBS, "DELETED", job | {"metadata": job["metadata"] | {"resourceVersion": "60"}})
    controller.chains.report(KEY, None)
    await controller.reconcile(KEY)
    assert ["-tiny-" in job["metadata"]["name"] for job in server.jobs] == [True]


async def test_a_failure_is_decided_on_live_reads_because_the_end_of_the_pod_may_not_be_reported_yet():
    server = a_running_stage()
    plan = a_plan()
    failed = a_job(plan, "mini", condition="Failed", reason="PodFailurePolicy", failed=1)
    server.report(Kind.JOBS, failed)
    said = '{"kind": "Failed"}'
    server.jobs, server.pods = [failed], [a_pod(failed, phase="Failed", exit_code=66, message=said, reason="Error")]
    await a_controller(server, children=server.children).reconcile(KEY)
    assert said in server.chain["status"]["stages"][0]["message"]
    assert server.reads == 1


class TrainedAgain(Watched):
    """A stage that is committed, and that the user lets train again. A watch that lags behind has its Job and answer."""

    request = "again:mini@1"

    def __init__(self) -> None:
        super().__init__()
        del self.chain["spec"]["stages"][1:]
        self.chain["metadata"]["annotations"] = {RETRY_ANNOTATION: self.request}
        self.job, self.pod = a_committed_job(a_plan(stages=["mini"]), "mini")
        self.job["metadata"]["annotations"] = {PODS_ANNOTATION: "pod-0"}
        self.report(Kind.JOBS, self.job)
        self.report(Kind.PODS, self.pod)

    def note_request(self) -> None:
        """As an operator does after it has deleted the Job."""
        status = {"observedGeneration": 1, "phase": "Pending", "handledRetry": self.request}
        metadata = self.chain["metadata"] | {"resourceVersion": "50"}
        self.chain = {**self.chain, "metadata": metadata, "status": status}


async def test_no_stage_that_trains_again_is_committed_by_the_answer_of_a_job_that_was_deleted():
    server = TrainedAgain()
    server.note_request()
    await a_controller(server, children=server.children).reconcile(KEY)
    assert [entry["phase"] for entry in server.chain["status"]["stages"]] == ["Running"]
    assert (server.reads, len(server.jobs)) == (1, 1)


async def test_no_stage_is_committed_that_another_operator_lets_train_again_while_its_jobs_are_read():
    class Racing(TrainedAgain):
        async def list_pods(self, namespace: str, chain: str) -> Listed:
            self.note_request()
            return await super().list_pods(namespace, chain)

    server = Racing()
    server.jobs, server.pods = [server.job], [server.pod]
    with pytest.raises(ApiError, match="changed while its Jobs were read"):
        await a_controller(server, children=server.children).reconcile(KEY)
    assert server.statuses == []


async def test_a_stage_that_trains_again_is_not_committed_by_a_job_that_the_watch_has_not_reported_yet():
    server = TrainedAgain()
    server.children = Watched().children
    server.jobs, server.pods = [server.job], [server.pod]
    await a_controller(server, children=server.children).reconcile(KEY)
    assert server.jobs == []
    assert server.chain["status"]["handledRetry"] == server.request


async def test_a_request_that_comes_while_jobs_are_read_is_handled_with_those_of_the_next_look():
    class Racing(Watched):
        async def list_pods(self, namespace: str, chain: str) -> Listed:
            annotated = {"annotations": {RETRY_ANNOTATION: TrainedAgain.request}, "resourceVersion": "50"}
            self.chain = {**self.chain, "metadata": self.chain["metadata"] | annotated}
            return await super().list_pods(namespace, chain)

    server = Racing()
    with pytest.raises(ApiError, match="changed while its Jobs were read"):
        await a_controller(server, children=server.children).reconcile(KEY)
    assert (server.statuses, server.jobs) == ([], [])


async def test_a_chain_without_a_name_is_not_read_because_the_answer_would_be_a_list():
    server = Counting()
    assert await a_controller(server).reconcile(ChainKey("ml", "")) is None
    assert server.looks == 0


async def test_an_edit_after_etcd_was_restored_from_a_backup_is_read_at_the_next_list_of_all_chains():
    server = a_running_stage()
    controller = a_controller(server, children=server.children)
    server.chain["metadata"]["resourceVersion"] = "900"
    await controller.reconcile(KEY)
    server.chain["spec"]["suspend"] = True
    server.chain["metadata"]["resourceVersion"] = "500"
    controller.chains.listed(KEY, 500)
    await controller.reconcile(KEY)
    assert server.jobs[0]["spec"]["suspend"]


async def test_a_chain_that_is_listed_as_it_is_known_is_not_read_again():
    server = a_running_stage()
    controller = a_controller(server, children=server.children)
    await controller.reconcile(KEY)
    controller.chains.listed(KEY, int(server.chain["metadata"]["resourceVersion"]))
    assert controller.chains.take_news(KEY)
    assert controller.chains.get(KEY) is not None


def test_chains_that_were_not_used_for_long_are_the_same_when_they_are_needed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(known_chains, "UNPACKED", 3)
    chains = KnownChains(FinishedChains(), monotonic=FakeClock())
    documents = {ChainKey("ml", f"c{number}"): a_document(f"c{number}") for number in range(10)}
    for number, (key, document) in enumerate(documents.items()):
        document["metadata"] |= {"resourceVersion": str(number), "uid": key.name}
        chains.note(key, document)
    for _ in range(2):
        assert {key: chains.get(key) for key in documents} == documents
    for key in list(documents)[::3]:
        chains.forget(key)
        assert chains.get(key) is None
