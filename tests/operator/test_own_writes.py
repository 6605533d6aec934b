"""The watch also reports what the operator has written, and that is no reason to look at a chain."""

from __future__ import annotations

from typing import Any

import pytest

from chain_builders import a_job, a_plan, a_pod
from distillchain_api.wire.answer import Progress
from distillchain_operator.cluster import ApiError
from distillchain_operator.labels import PODS_ANNOTATION
from fake_api_server import KEY, FakeApiServer, FakeClock, a_controller


class Counting(FakeApiServer):
    """Counts how often the chain is read."""

    looks = 0

    async def get_chain(self, namespace: str, name: str) -> dict[str, Any]:
        self.looks += 1
        return await super().get_chain(namespace, name)


async def test_a_report_of_the_own_write_causes_no_look_and_any_other_report_does():
    server = Counting()
    controller = a_controller(server)
    await controller.reconcile(KEY)
    assert (server.looks, len(server.statuses)) == (1, 1)
    assert not controller.own_writes.report(KEY, "version-1")
    assert controller.own_writes.report(KEY, "edited")
    await controller.reconcile(KEY)
    assert controller.own_writes.report(KEY, "")  # one of its Jobs
    await controller.reconcile(KEY)
    assert server.looks == 3


async def test_a_report_that_is_faster_than_the_answer_to_the_write_causes_no_look():
    class Slow(Counting):
        async def patch_status(self, *args: Any, **more: Any) -> str:
            assert controller.own_writes.report(KEY, "version-1")
            return await super().patch_status(*args, **more)

    server = Slow()
    controller = a_controller(server)
    await controller.reconcile(KEY)
    await controller.reconcile(KEY)
    assert server.looks == 1


async def test_a_look_that_is_due_is_not_lost_in_reports_of_the_own_write():
    server, clock = Counting(), FakeClock()
    server.jobs = [a_job(a_plan(), "mini", active=1)]
    server.pods = [a_pod(server.jobs[0])]
    controller = a_controller(server, clock)
    assert await controller.reconcile(KEY) == 60  # to read the progress
    controller.own_writes.report(KEY, "before")
    controller.own_writes.note(KEY, "before")
    clock.now_s = 20
    assert await controller.reconcile(KEY) == 40
    controller.own_writes.report(KEY, "")
    clock.now_s = 60
    await controller.reconcile(KEY)
    assert server.looks == 2


async def test_after_a_look_that_failed_every_report_is_a_reason():
    server = Counting()
    controller = a_controller(server)
    await controller.reconcile(KEY)
    server.refusal = ApiError(0, "cannot connect")
    server.jobs = []
    with pytest.raises(ApiError):
        await controller.reconcile(KEY)
    assert controller.own_writes.report(KEY, "version-1")


class Reads(Counting):
    """Counts the reads of Jobs too."""

    reads = 0

    async def list_jobs(self, namespace: str, chain: str) -> list[dict[str, Any]]:
        self.reads += 1
        return await super().list_jobs(namespace, chain)


async def test_the_progress_of_a_stage_costs_no_reads_of_jobs_and_pods():
    server, clock = Reads(), FakeClock()
    server.jobs = [a_job(a_plan(), "mini", active=1)]
    server.pods = [a_pod(server.jobs[0])]
    controller = a_controller(server, clock)
    await controller.reconcile(KEY)
    clock.now_s = 60.1
    server.log = [Progress(stage="mini", phase="Train", step=9, of=100).to_json()]
    assert await controller.reconcile(KEY) == 60
    assert (server.log_reads, server.chain["status"]["stages"][0]["progress"]["step"]) == (2, 9)
    assert server.reads == 2  # what was read is known for a minute


async def test_jobs_and_pods_are_read_again_after_a_report_and_before_an_action():
    server, clock = Reads(), FakeClock()
    server.jobs = [a_job(a_plan(), "mini", active=1)]
    server.jobs[0]["metadata"]["annotations"][PODS_ANNOTATION] = "pod-0"
    server.pods = [a_pod(server.jobs[0])]
    controller = a_controller(server, clock, progress_s=15)
    for now_s in (0, 15, 30, 45):
        clock.now_s = now_s
        await controller.reconcile(KEY)
    assert server.reads == 1
    server.chain["spec"]["suspend"] = True  # an edit whose report is late
    clock.now_s = 59
    controller.own_writes.looked(KEY, 0)
    await controller.reconcile(KEY)
    assert server.reads == 2
    controller.own_writes.report(KEY, "")
    await controller.reconcile(KEY)
    assert server.reads == 3
