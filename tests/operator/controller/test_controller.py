"""The steps of one reconcile where the real parts cannot show them: refusals, progress and logs.

`FakeApiServer` replaces the API server; tests on the real one are in test_chains_on_apiserver.py.
"""

from __future__ import annotations

from typing import Any

import pytest

from chain_builders import IMAGE, a_job, a_plan, a_pod
from deciding import committed_status
from distillchain_api.wire.answer import Progress
from distillchain_operator.api_server.cluster import ApiError
from distillchain_operator.caches.children import Listed
from distillchain_operator.chain_key import ChainKey
from fake_api_server import KEY, FakeApiServer, FakeClock, a_controller


async def test_an_unchanged_status_is_not_written_again():
    server = FakeApiServer()
    controller = a_controller(server)
    for _ in range(3):
        await controller.reconcile(KEY)
    assert len(server.jobs) == 1
    assert len(server.statuses) <= 2  # created, then seen
    assert server.events == ["StageStarted"]


async def test_a_look_gives_way_when_its_job_is_created_and_only_if_a_status_is_to_be_written():
    server, gave_way = FakeApiServer(), []

    async def give_way(key: ChainKey) -> None:
        assert key == KEY
        gave_way.append((len(server.jobs), len(server.statuses)))

    controller = a_controller(server, give_way=give_way)
    await controller.reconcile(KEY)
    assert gave_way == [(1, 0)]
    for _ in range(3):
        await controller.reconcile(KEY)
    assert len(gave_way) == len(server.statuses) < 4


@pytest.mark.parametrize("status", [400, 403, 422])
async def test_a_refusal_is_reported_once_and_retried_later(status: int):
    server = FakeApiServer()
    server.refusal = ApiError(status, 'pods "relay-mini-" is forbidden: violates PodSecurity "restricted"')
    clock = FakeClock()
    controller = a_controller(server, clock)
    assert await controller.reconcile(KEY) == 30.0
    await controller.reconcile(KEY)
    assert server.jobs == []
    assert len(server.statuses) == 1
    assert server.chain["status"]["message"] == (
        "mini: the API server refused a dry run of the stage's pod: "
        'pods "relay-mini-" is forbidden: violates PodSecurity "restricted"; retrying every 30 s'
    )
    assert server.events == ["StageFailed"]
    server.refusal = None
    clock.now_s = 30
    await controller.reconcile(KEY)
    assert len(server.jobs) == 1


async def test_a_refusal_whose_text_differs_each_time_is_not_retried_before_the_backoff_has_expired():
    server, clock = FakeApiServer(), FakeClock()
    controller = a_controller(server, clock)
    for now_s in range(30):
        clock.now_s = now_s
        server.refusal = ApiError(500, f"failed calling webhook: read tcp 10.0.0.1:{40000 + now_s}: connection reset")
        assert await controller.reconcile(KEY) == 30.0 - now_s
    assert (server.dry_runs, len(server.statuses)) == (1, 1)
    clock.now_s = 30
    await controller.reconcile(KEY)
    assert (server.dry_runs, len(server.statuses)) == (2, 2)


async def test_an_edit_of_a_chain_whose_job_was_refused_is_tried_at_once():
    server = FakeApiServer()
    server.refusal = ApiError(403, "exceeded quota: gpu")
    controller = a_controller(server)
    await controller.reconcile(KEY)
    server.refusal = None
    server.chain["metadata"]["generation"] = 2
    await controller.reconcile(KEY)
    assert len(server.jobs) == 1


@pytest.mark.parametrize(
    "status, sentence",
    [
        pytest.param(403, "exceeded quota: gpu, requested: 1, used: 8, limited: 8", id="a quota that is used up"),
        pytest.param(
            403,
            "cannot set blockOwnerDeletion in this case because cannot find RESTMapping for APIVersion "
            "distillchain.io/v1alpha1 Kind DistillationChain",
            id="a CRD that admission does not know yet",
        ),
        pytest.param(
            403, 'error looking up service account ml/default: serviceaccount "default" not found', id="a new namespace"
        ),
        pytest.param(500, "failed calling webhook: connection refused", id="a webhook that is down"),
        pytest.param(409, "Operation cannot be fulfilled on resourcequotas", id="two writers of one quota"),
    ],
)
async def test_a_refusal_that_may_pass_without_the_user_keeps_the_stage_pending(status: int, sentence: str):
    server = FakeApiServer()
    server.refusal = ApiError(status, sentence)
    clock = FakeClock()
    controller = a_controller(server, clock)
    assert (await controller.reconcile(KEY) or 0) > 0
    assert server.chain["status"]["phase"] == "Pending"
    assert server.chain["status"]["message"].startswith("mini: ")
    assert f"{sentence}; retrying" in server.chain["status"]["message"]
    assert server.events == []
    server.refusal = None
    clock.now_s = 30
    await controller.reconcile(KEY)
    assert len(server.jobs) == 1


async def test_without_an_api_server_nothing_changes_and_the_queue_retries():
    server = FakeApiServer()
    server.refusal = ApiError(0, "cannot connect")
    with pytest.raises(ApiError):
        await a_controller(server).reconcile(KEY)
    assert (server.jobs, server.statuses) == ([], [])


async def test_a_namespace_that_is_being_deleted_fails_no_chain():
    server = FakeApiServer()
    server.refusal = ApiError(403, "is being terminated", causes=frozenset({"NamespaceTerminating"}))
    await a_controller(server).reconcile(KEY)
    assert server.chain["status"]["phase"] == "Pending"


async def test_a_chain_that_may_no_longer_be_read_is_left_alone():
    """Its namespace is being deleted, and the operator's Role in it was deleted first."""

    class Refusing(FakeApiServer):
        async def get_chain(self, namespace: str, name: str) -> dict[str, Any]:
            raise ApiError(403, "distillationchains.distillchain.io is forbidden")

    assert await a_controller(Refusing(), namespaces=(KEY.namespace,)).reconcile(KEY) is None
    with pytest.raises(ApiError):  # with a ClusterRole, a mistake in RBAC is the only reason
        await a_controller(Refusing()).reconcile(KEY)


async def test_progress_is_the_newest_line_and_the_log_is_not_read_at_every_reconcile():
    server = FakeApiServer()
    server.jobs = [a_job(a_plan(), "mini", active=1)]
    server.pods = [a_pod(server.jobs[0])]
    lines = [Progress(stage="mini", phase="Train", step=step, of=100, loss=0.5) for step in (1, 2)]
    server.log = [*(line.to_json() for line in lines), "another line"]
    controller = a_controller(server)
    assert await controller.reconcile(KEY) == 60
    await controller.reconcile(KEY)
    assert server.log_reads == 1
    assert server.chain["status"]["stages"][0]["progress"] == {
        "phase": "Train",
        "step": 2,
        "of": 100,
        "loss": "0.5000",
        "changedAt": "2026-01-01T12:00:00Z",
    }


async def test_a_chain_whose_pod_is_stopping_is_due_again_when_its_node_must_have_confirmed_it():
    server = FakeApiServer()
    server.jobs = [a_job(a_plan(), "mini", active=1)]
    server.pods = [a_pod(server.jobs[0])]
    server.pods[0]["metadata"]["deletionTimestamp"] = "2026-01-01T11:59:00Z"
    assert await a_controller(server).reconcile(KEY) == 120


async def test_a_spec_that_only_the_types_refuse_is_reported_in_stalled_with_all_faults():
    server = FakeApiServer()
    server.chain["spec"]["task"]["labels"] = ["one"]
    server.chain["spec"]["stages"][0]["studnet"] = {}
    await a_controller(server).reconcile(KEY)
    stalled = next(c for c in server.chain["status"]["conditions"] if c["type"] == "Stalled")
    assert (stalled["status"], stalled["reason"]) == ("True", "InvalidSpec")
    assert "spec.task.labels: got" in stalled["message"]
    assert "spec.stages[0].studnet: unknown field; did you mean student?" in stalled["message"]


@pytest.mark.parametrize("suspend", [False, True])
async def test_a_job_keeps_running_under_a_spec_that_became_invalid_unless_the_chain_is_suspended(suspend: bool):
    server = FakeApiServer()
    controller = a_controller(server)
    await controller.reconcile(KEY)
    (job,) = server.jobs
    server.chain["spec"]["task"]["labels"] = ["one"]
    server.chain["spec"]["suspend"] = suspend
    await controller.reconcile(KEY)
    name = job["metadata"]["name"]
    assert job["spec"]["suspend"] is suspend
    hint = f"Job {name} keeps running; set spec.suspend: true to stop it"
    assert (hint in server.chain["status"]["message"]) is not suspend


async def test_a_status_with_a_field_of_a_later_release_causes_no_further_write_and_no_event():
    server = FakeApiServer()
    controller = a_controller(server)
    for _ in range(2):  # created, then seen
        await controller.reconcile(KEY)
    server.chain["status"]["budget"] = {"left": 1}
    server.chain["status"]["stages"][0]["cost"] = 3
    before = len(server.statuses), len(server.events)
    for _ in range(3):
        await controller.reconcile(KEY)
    assert (len(server.statuses), len(server.events)) == before


async def test_a_status_that_cannot_be_read_is_rebuilt():
    server = FakeApiServer()
    server.chain["status"] = {"phase": "Dreaming"}
    await a_controller(server).reconcile(KEY)
    assert server.chain["status"]["phase"] == "Running"


MISSPELT: dict[str, Any] = {"image": IMAGE, "pod": {"spec": {"nodeSelctor": {"gpu": "a100"}}}}


async def test_a_misspelt_field_that_the_api_server_refuses_is_reported_with_its_path_and_the_name_meant():
    server = FakeApiServer()
    server.chain["spec"]["template"] = MISSPELT
    server.refusal = ApiError(400, 'strict decoding error: unknown field "spec.nodeSelctor"')
    await a_controller(server).reconcile(KEY)
    assert server.chain["status"]["stages"][0]["failureClass"] == "PodRejected"
    assert server.chain["status"]["message"] == (
        "mini: spec.template.pod.spec.nodeSelctor: unknown field; did you mean nodeSelector?; the API server refused a "
        'dry run of the stage\'s pod: strict decoding error: unknown field "spec.nodeSelctor"; retrying every 30 s'
    )


async def test_a_field_that_only_a_newer_api_server_knows_is_accepted_with_it():
    server = FakeApiServer()
    server.chain["spec"]["template"] = MISSPELT
    server.chain["metadata"]["shard"] = "a"
    await a_controller(server).reconcile(KEY)
    assert [job["spec"]["template"]["spec"]["nodeSelctor"] for job in server.jobs] == [{"gpu": "a100"}]


async def test_a_work_order_too_large_for_an_environment_variable_is_reported_with_the_field_to_shorten():
    server = FakeApiServer()
    server.chain["spec"]["task"]["labels"] = [f"{number:0200d}" for number in range(900)]
    await a_controller(server).reconcile(KEY)
    stalled = next(c for c in server.chain["status"]["conditions"] if c["type"] == "Stalled")
    assert (stalled["reason"], server.jobs) == ("InvalidSpec", [])
    assert stalled["message"].startswith("spec.task.labels: takes 182700 bytes")


def a_server_with_two_nodes() -> FakeApiServer:
    server = FakeApiServer()
    server.chain["spec"]["template"]["parallelism"] = {"nodes": 2}
    return server


async def test_a_service_and_a_policy_are_created_with_a_job_on_two_nodes_and_again_when_one_is_deleted():
    server = a_server_with_two_nodes()
    controller = a_controller(server)
    for _ in range(3):
        await controller.reconcile(KEY)
    assert [part["kind"] for part in server.parts] == ["NetworkPolicy", "Service"]
    del server.parts[1]
    await controller.reconcile(KEY)
    assert [part["kind"] for part in server.parts] == ["NetworkPolicy", "Service"]


async def test_no_job_is_created_while_its_service_would_be_refused():
    server = a_server_with_two_nodes()
    server.part_refusal = ApiError(403, "exceeded quota: services")
    await a_controller(server).reconcile(KEY)
    assert server.jobs == []
    message = server.chain["status"]["message"]
    assert "the API server refused a dry run of Service relay-mini-" in message
    assert server.chain["status"]["phase"] == "Pending"


@pytest.mark.parametrize(
    "refusal, want, stalled",
    [
        (ApiError(403, "denied by a policy"), "denied by a policy; retrying every 30 s", "True"),
        (ApiError(500, "webhook down"), "webhook down; retrying every 30 s", "False"),
        (ApiError(409, "exists", reason="AlreadyExists"), "belongs to another owner; if it does not go away", "False"),
    ],
)
async def test_a_part_that_is_refused_is_reported_and_retried_later(refusal: ApiError, want: str, stalled: str):
    server, clock = a_server_with_two_nodes(), FakeClock()
    controller = a_controller(server, clock)
    await controller.reconcile(KEY)
    server.part_refusal = refusal
    retry_s = await controller.reconcile(KEY)
    assert retry_s in (5.0, 30.0)
    assert want in server.chain["status"]["message"]
    assert {c["type"]: c["status"] for c in server.chain["status"]["conditions"]}["Stalled"] == stalled
    server.part_refusal = None
    await controller.reconcile(KEY)
    assert server.parts == []
    clock.now_s = retry_s
    await controller.reconcile(KEY)
    assert len(server.parts) == 2


async def test_without_network_policies_only_a_service_is_created():
    server = a_server_with_two_nodes()
    controller = a_controller(server, network_policies=False)
    for _ in range(3):
        await controller.reconcile(KEY)
    assert [part["kind"] for part in server.parts] == ["Service"]


class RefusesMini(FakeApiServer):
    """Refuses every pod of mini, and of other stages as `refusal` says."""

    async def dry_run_pod(self, pod: dict[str, Any]) -> None:
        await super().dry_run_pod(pod)
        if "-mini-" in pod["metadata"]["name"]:
            raise ApiError(403, "denied by a policy")


def a_server_with_two_late_exports() -> RefusesMini:
    server = RefusesMini()
    server.chain["status"] = committed_status(a_plan(), "mini", "tiny").to_document()
    server.chain["spec"]["template"]["export"] = {"onnx": {}}
    server.chain["metadata"]["generation"] = 2
    return server


async def test_of_two_refused_exports_each_is_tried_again_and_the_status_is_written_once_for_each():
    server, clock = a_server_with_two_late_exports(), FakeClock()
    controller = a_controller(server, clock)
    server.refusal = ApiError(403, "exceeded the pods of this team")
    for _ in range(5):  # each write of the status is an event
        await controller.reconcile(KEY)
    assert (server.dry_runs, len(server.statuses)) == (2, 2)
    server.refusal = None
    clock.now_s = 30
    for _ in range(5):
        await controller.reconcile(KEY)
    assert ["-tiny-" in job["metadata"]["name"] for job in server.jobs] == [True]


@pytest.mark.parametrize("condition, want_reads", [("Ready", 0), ("Stalled", 1)])
async def test_after_a_start_a_chain_that_has_succeeded_is_looked_at_only_if_it_is_stalled(
    condition: str, want_reads: int
):
    class Counting(FakeApiServer):
        reads = 0

        async def list_jobs(self, namespace: str, chain: str) -> Listed:
            self.reads += 1
            return await super().list_jobs(namespace, chain)

    server = Counting()
    status = committed_status(a_plan(), "mini", "tiny").to_document()
    next(c for c in status["conditions"] if c["type"] == condition)["status"] = "True"
    server.chain["status"] = status
    await a_controller(server).reconcile(KEY)
    assert server.reads == want_reads
