"""When a change of a Job that the API server refused is tried again."""

from __future__ import annotations

from typing import cast

from chain_builders import a_job, a_plan
from distillchain_operator.api_server.cluster import ApiError, Cluster
from distillchain_operator.controller.job_changes import JobChanger
from distillchain_operator.decide.actions import NotePods, SetSuspend
from fake_api_server import KEY, FakeApiServer, FakeClock, a_controller


class Refusing:
    """A Cluster that refuses changes of Jobs."""

    requests = 0

    async def annotate_job(self, *_: object, **__: object) -> None:
        self.requests += 1
        raise ApiError(403, "denied")

    async def set_suspend(self, *_: object, **__: object) -> None:
        self.requests += 1
        raise ApiError(403, "denied")


async def test_a_refused_change_is_not_tried_again_at_once_although_its_content_differs_each_time():
    """The end of a pod that disappeared is noted as the present time until the note is accepted."""
    server, clock = Refusing(), FakeClock()
    changer = JobChanger(cast("Cluster", server), monotonic=clock)
    for now_s in range(30):
        clock.now_s = now_s
        action = NotePods("job", "uid", (f"abc=2026-01-01T12:00:00Z/2026-01-01T12:10:{now_s:02d}Z",))
        refused = await changer.change(action, KEY)
        assert refused is not None
        assert refused.retry_s == 30 - now_s
    assert server.requests == 1
    clock.now_s = 30
    await changer.change(action, KEY)
    assert server.requests == 2


async def test_changes_of_other_kinds_and_of_other_jobs_do_not_wait_for_a_refused_one():
    server = Refusing()
    changer = JobChanger(cast("Cluster", server), monotonic=FakeClock())
    for action in (
        NotePods("job", "uid", ()),
        NotePods("job", "other", ()),
        SetSuspend("job", "uid", suspend=True),
        SetSuspend("job", "uid", suspend=False),
    ):
        await changer.change(action, KEY)
    assert server.requests == 4


async def test_what_was_refused_of_chains_that_no_longer_exist_is_forgotten():
    server = FakeApiServer()
    server.jobs, server.chain["spec"]["suspend"] = [a_job(a_plan(), "mini", active=1)], True
    server.change_refusal = ApiError(403, "denied")
    controller = a_controller(server)
    for existing, requests in (({KEY}, 1), ({KEY}, 1), (set(), 1), (set(), 2)):
        await controller.reconcile(KEY)
        assert server.refused_changes == requests
        controller.prune(existing)
