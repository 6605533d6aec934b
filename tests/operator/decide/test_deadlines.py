"""`timeout` of stage and chain, and `progressDeadline`: what counts, what happens, and what a retry or an edit does."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest

from chain_builders import a_committed_job, a_job, a_plan, a_pod, retrying
from deciding import NOON, a_failed_job, committed_status, created, decide, deleted, entry
from distillchain_api.failures import FailureClass
from distillchain_api.graph import Plan
from distillchain_api.resource.status import ChainStatus
from distillchain_api.wire.answer import Progress
from distillchain_operator.decide.actions import CreateJob, Decision, NotePods
from distillchain_operator.jobs.labels import PODS_ANNOTATION
from distillchain_operator.status.chain_status import invalid_status, timestamp
from distillchain_operator.status.transitions import transitions


def at(minutes: float) -> datetime:
    return NOON + timedelta(minutes=minutes)


def a_plan_with(generation: int = 1, **template: Any) -> Plan:
    return a_plan(stages=["mini"], template={"image": "x", **template}, generation=generation)


HOUR = a_plan_with(timeout="1h")


def ran(job: dict[str, Any], number: int, start: float, end: float | None = None, **pod: Any) -> dict[str, Any]:
    """A pod whose trainer started, and perhaps was interrupted, so many minutes after noon."""
    made = a_pod(job, number=number, **({} if end is None else {"phase": "Failed", "exit_code": 75}), **pod)
    (state,) = made["status"]["containerStatuses"][0]["state"].values()
    state["startedAt"] = timestamp(at(start))
    if end is not None:
        state["finishedAt"] = timestamp(at(end))
    made["metadata"]["creationTimestamp"] = timestamp(at(start))
    return made


def test_a_stage_that_ran_for_its_timeout_fails_and_waiting_for_a_gpu_does_not_count():
    job = a_job(HOUR, "mini", active=1)
    waiting = a_pod(job, phase="Pending")
    assert entry(decide(HOUR, job, pods=(waiting,), now=at(600)), "mini").phase == "Running"

    running = ran(job, 0, start=600)
    decision = decide(HOUR, job, pods=(running,), now=at(659))
    assert (entry(decision, "mini").phase, decision.look_again_s) == ("Running", 60)

    late = decide(HOUR, job, pods=(running,), previous=decision.status, now=at(660))
    assert (entry(late, "mini").phase, entry(late, "mini").failure_class) == ("Failed", "DeadlineExceeded")
    assert entry(late, "mini").message == (
        "ran longer than its timeout of 3600 s; raise timeout: training resumes from the saved state"
    )
    assert deleted(late) == [job["metadata"]["name"]]
    gone = decide(HOUR, previous=late.status, now=at(700))
    assert (gone.status, gone.actions) == (late.status, ())
    assert created(decide(retrying(HOUR, "mini"), previous=late.status, now=at(700))) == ["mini"]
    assert created(decide(a_plan_with(2, timeout="2h"), previous=late.status, now=at(700))) == ["mini"]


def test_the_job_has_no_deadline_of_its_own_and_keeps_its_name():
    job, without = a_job(HOUR, "mini"), a_job(a_plan_with(), "mini")
    assert "activeDeadlineSeconds" not in job["spec"]
    assert job["metadata"]["name"] != without["metadata"]["name"]
    assert (
        job["metadata"]["name"] != a_job(a_plan_with(timeout="1h", progressDeadline="5m"), "mini")["metadata"]["name"]
    )


def test_all_pods_of_a_job_count_also_those_that_are_gone():
    job = a_job(HOUR, "mini", active=1)
    job["metadata"]["annotations"][PODS_ANNOTATION] = f"gone={timestamp(at(5))}/{timestamp(at(25))}"
    pods = (ran(job, 0, start=100, end=120), ran(job, 1, start=200))
    assert entry(decide(HOUR, job, pods=pods, now=at(219)), "mini").phase == "Running"
    assert entry(decide(HOUR, job, pods=pods, now=at(220)), "mini").phase == "Failed"


def test_when_a_trainer_ran_is_noted_once_and_only_with_a_timeout():
    job = a_job(HOUR, "mini", active=1)
    job["metadata"]["annotations"][PODS_ANNOTATION] = "pod-0"
    (note,) = [a for a in decide(HOUR, job, pods=(ran(job, 0, start=1),), now=at(2)).actions if isinstance(a, NotePods)]
    assert note.pods == (f"pod-0={timestamp(at(1))}",)
    job["metadata"]["annotations"][PODS_ANNOTATION] = note.pods[0]
    assert decide(HOUR, job, pods=(ran(job, 0, start=1),), now=at(2)).actions == ()
    (note,) = decide(HOUR, job, pods=(ran(job, 0, start=1, end=4),), now=at(5)).actions
    assert note.pods == (f"pod-0={timestamp(at(1))}/{timestamp(at(4))}",)

    plain = a_plan_with()
    job = a_job(plain, "mini", active=1)
    job["metadata"]["annotations"][PODS_ANNOTATION] = "pod-0"
    assert decide(plain, job, pods=(ran(job, 0, start=1),), now=at(2)).actions == ()


def test_a_pod_whose_end_was_not_seen_has_run_until_the_first_look_without_it_or_until_the_next_pod_was_created():
    job = a_job(HOUR, "mini", active=1)
    name, start = PODS_ANNOTATION, f"gone={timestamp(at(5))}"
    job["metadata"]["annotations"][name] = start
    (note,) = decide(HOUR, job, now=at(40)).actions
    assert note.pods == (f"{start}/{timestamp(at(40))}",)
    job["metadata"]["annotations"][name] = note.pods[0]
    assert decide(HOUR, job, now=at(90)).actions == (), "noted once"

    # The operator was down when the pod ended. The next one was created at once and waited six hours for a GPU.
    job["metadata"]["annotations"][name] = start
    after = ran(job, 1, start=400)
    after["metadata"]["creationTimestamp"] = timestamp(at(30))
    decision = decide(HOUR, job, pods=(after,), now=at(401))
    assert (entry(decision, "mini").phase, decision.look_again_s) == ("Running", (60 - 25 - 1) * 60)
    (note,) = [action for action in decision.actions if isinstance(action, NotePods)]
    assert note.pods == (f"{start}/{timestamp(at(30))}", f"pod-1={timestamp(at(400))}")

    # A node that is off does not confirm that its pod has stopped.
    lost = ran(job, 0, start=5)
    lost["metadata"]["deletionTimestamp"] = timestamp(at(20))
    job["metadata"]["annotations"][name] = f"pod-0={timestamp(at(5))}"
    (note,) = decide(HOUR, job, pods=(lost,), now=at(300)).actions
    assert note.pods == (f"pod-0={timestamp(at(5))}/{timestamp(at(20))}",)

    # A kubelet that reports no times of a pod that has ended.
    ended = a_pod(job, phase="Failed")
    job["metadata"]["annotations"][name] = f"pod-0={timestamp(at(5))}/{timestamp(at(50))},pod-1"
    again = ran(job, 1, start=100)
    assert entry(decide(HOUR, job, pods=(ended, again), now=at(114)), "mini").phase == "Running"
    assert entry(decide(HOUR, job, pods=(ended, again), now=at(115)), "mini").phase == "Failed"


def test_the_timeout_begins_again_after_a_suspension():
    job = a_job(HOUR, "mini", active=1)
    job["status"]["startTime"] = timestamp(at(300))
    job["metadata"]["annotations"][PODS_ANNOTATION] = f"gone={timestamp(at(0))}/{timestamp(at(50))}"
    pods = (ran(job, 0, start=301),)
    assert entry(decide(HOUR, job, pods=pods, now=at(350)), "mini").phase == "Running"


STALLS = a_plan_with(progressDeadline="10m", retries=1)


def step(number: int, *, phase: Any = "Train", of: int = 100) -> Progress:
    return Progress(stage="mini", phase=phase, step=number, of=of)


def looks(*reads: tuple[float, Progress | None], plan: Plan = STALLS, previous: ChainStatus | None = None) -> Decision:
    """The last of several looks at a running Job: minutes after noon, and the progress that was read."""
    job = a_job(plan, "mini", active=1)
    decision = None
    for minutes, read in reads:
        pods = (ran(job, 0, start=0),)
        before = decision.status if decision else previous
        decision = decide(plan, job, pods=pods, previous=before, progress=read, now=at(minutes))
    assert decision is not None
    return decision


def test_a_trainer_that_makes_no_progress_is_started_again_and_fails_when_its_retries_are_used():
    assert deleted(looks((0, step(7)), (9, step(7)))) == []
    assert deleted(looks((0, step(7)), (9, step(8)), (18, step(8)))) == []

    stalled = looks((0, step(7)), (10, step(7)))
    found = entry(stalled, "mini")
    assert (found.phase, found.stalls, len(deleted(stalled))) == ("Pending", 1, 1)
    assert found.message.startswith(
        "its trainer made no progress within the progressDeadline of 600 s, at step 7 of 100 (Train), so Job "
    )
    assert found.message.endswith("; 1 of 1 retries used")
    assert [event.reason for event in transitions(ChainStatus(), stalled.status)] == ["ProgressDeadlineExceeded"]

    again = decide(STALLS, previous=stalled.status, now=at(12))
    assert (created(again), entry(again, "mini").stalls) == (["mini"], 1)
    failed = looks((12, step(7)), (22, step(7)), previous=again.status)
    assert (entry(failed, "mini").phase, entry(failed, "mini").failure_class) == ("Failed", "DeadlineExceeded")
    assert entry(failed, "mini").message.endswith("(Train), after 1 retries; training resumes from the saved state")
    assert created(decide(STALLS, previous=failed.status, now=at(30))) == []
    assert created(decide(a_plan_with(2, progressDeadline="1h", retries=1), previous=failed.status)) == ["mini"]


@pytest.mark.parametrize(
    "read",
    [
        pytest.param(None, id="the log cannot be read"),
        pytest.param(step(0, phase="FetchTeacher", of=1), id="download"),
        pytest.param(step(0), id="before the first step"),
        pytest.param(step(100), id="after the last step"),
        pytest.param(step(0, phase="Upload", of=1), id="upload"),
        pytest.param(step(1, phase="Export", of=3), id="export"),
    ],
)
def test_a_phase_without_steps_and_an_unreadable_log_stop_no_trainer(read: Progress | None):
    decision = looks((0, read or step(7)), (600, read))
    assert (deleted(decision), entry(decision, "mini").phase) == ([], "Running")


def test_a_later_pod_has_the_whole_time_from_its_first_step_even_if_that_is_the_last_one_of_the_pod_before():
    job = a_job(STALLS, "mini", active=1)
    first, interrupted = looks((0, step(7))).status, ran(job, 0, start=0, end=5)
    waiting = decide(STALLS, job, pods=(interrupted, a_pod(job, number=1, phase="Pending")), previous=first, now=at(8))
    # It waited for a GPU, and then downloaded and compiled.
    pods = (interrupted, ran(job, 1, start=120))
    compiling = decide(STALLS, job, pods=pods, previous=waiting.status, now=at(140))
    trains = decide(STALLS, job, pods=pods, previous=compiling.status, progress=step(7), now=at(150))
    assert [deleted(decision) for decision in (waiting, compiling, trains)] == [[], [], []]
    assert entry(compiling, "mini").progress.step == 7, "status keeps what is known"
    for minutes, stops in ((159, 0), (160, 1)):
        later = decide(STALLS, job, pods=pods, previous=trains.status, progress=step(7), now=at(minutes))
        assert len(deleted(later)) == stops

    # The operator was down until the next pod trained.
    assert deleted(decide(STALLS, job, pods=pods, previous=first, progress=step(7), now=at(150))) == []


def a_chain_with_timeout(timeout: str = "2h", **spec: Any) -> Plan:
    return a_plan(timeout=timeout, **spec)


def test_a_chain_that_runs_longer_than_its_timeout_fails_at_its_present_stage():
    plan = a_chain_with_timeout()
    first = decide(plan)
    assert (first.status.started_at, first.look_again_s) == ("2026-01-01T12:00:00Z", None)
    done, answered = a_committed_job(plan, "mini")
    job = a_job(plan, "tiny", active=1)
    pods = (answered, a_pod(job, number=1))
    running = decide(plan, done, job, pods=pods, previous=first.status, now=at(119))
    assert (running.status.phase, running.look_again_s) == ("Running", 60)

    late = decide(plan, done, job, pods=pods, previous=running.status, now=at(120))
    assert (late.status.phase, entry(late, "mini").phase, entry(late, "tiny").phase) == (
        "Failed",
        "Committed",
        "Failed",
    )
    assert late.status.message == (
        "tiny: the chain ran longer than its timeout of 2h; raise spec.timeout: training resumes from the saved state"
    )
    assert deleted(late) == [job["metadata"]["name"]]
    still = decide(plan, done, pods=(answered,), previous=late.status, now=at(300))
    assert (still.status, created(still)) == (late.status, [])

    for again in (retrying(plan, "tiny"), a_chain_with_timeout("3h", generation=2)):
        resumed = decide(again, done, pods=(answered,), previous=late.status, now=at(300))
        assert (created(resumed), resumed.status.started_at) == (["tiny"], timestamp(at(300)))


def test_a_stage_that_has_failed_keeps_its_reason_after_the_timeout_of_the_chain_has_passed():
    plan = a_chain_with_timeout()
    job = a_job(plan, "mini", active=1)
    started = decide(plan, job, pods=(a_pod(job),), now=at(0)).status
    failed_job, pod = a_failed_job(plan, "mini", FailureClass.DATA_INVALID, sentence="train.tsv:7")
    failed = decide(plan, failed_job, pods=(pod,), previous=started, now=at(10)).status
    assert failed.stages[0].failure_class == "DataInvalid"

    for world in ((failed_job,), ()):
        later = decide(plan, *world, pods=(pod,) if world else (), previous=failed, now=at(121))
        assert (later.status, later.actions) == (failed, ())
    # The operator may have been down when the Job failed.
    missed = decide(plan, failed_job, pods=(pod,), previous=started, now=at(121))
    assert entry(missed, "mini").failure_class == "DataInvalid"
    longer = decide(a_chain_with_timeout("9h", generation=2), previous=failed, now=at(130))
    assert (created(longer), entry(longer, "mini").failure_class) == ([], "DataInvalid")


def test_a_suspension_an_edit_after_the_end_and_controls_do_not_use_up_the_time_of_a_chain():
    plan = a_chain_with_timeout(stages=["mini"])
    started = decide(plan).status
    suspended = decide(a_chain_with_timeout(stages=["mini"], suspend=True, generation=2), previous=started, now=at(60))
    assert suspended.status.started_at is None
    resumed = decide(a_chain_with_timeout(stages=["mini"], generation=3), previous=suspended.status, now=at(600))
    assert (created(resumed), resumed.status.started_at) == (["mini"], timestamp(at(600)))

    job, pod = a_committed_job(plan, "mini")
    done = decide(plan, job, pods=(pod,), previous=started, now=at(1)).status
    assert (done.phase, done.started_at) == ("Succeeded", started.started_at)
    edited = decide(a_chain_with_timeout(generation=2), job, pods=(pod,), previous=done, now=at(900))
    assert (created(edited), edited.status.started_at) == (["tiny"], timestamp(at(900)))


def test_a_pause_before_the_job_of_the_first_stage_counts_for_the_timeout_of_the_chain():
    plan = a_chain_with_timeout(stages=["mini"], template={"image": "x", "pendingDeadline": "100m"})
    started = decide(plan).status
    job = a_job(plan, "mini", active=1)
    paused = decide(plan, job, pods=(a_pod(job, phase="Pending"),), previous=started, now=at(100))
    assert (paused.status.phase, paused.status.started_at) == ("Pending", started.started_at)
    again = decide(plan, previous=paused.status, now=at(110))
    assert (created(again), again.status.started_at) == (["mini"], started.started_at)
    late = decide(plan, previous=paused.status, now=at(120))
    assert (created(late), late.status.phase, entry(late, "mini").failure_class) == ([], "Failed", "DeadlineExceeded")


def test_only_a_retry_of_a_failed_stage_and_an_edit_of_a_chain_that_has_ended_give_a_chain_its_time_again():
    plan = a_chain_with_timeout(stages=["mini"])
    started = decide(plan).status
    job = a_job(plan, "mini", active=1)
    pods = (a_pod(job),)
    for named in ("mni", "mini"):
        same = decide(retrying(plan, named), job, pods=pods, previous=started, now=at(119))
        assert (same.status.started_at, same.look_again_s) == (started.started_at, 60)

    corrected = a_chain_with_timeout(stages=["mini"], generation=3)
    invalid = invalid_status(["spec.x: got 1"], generation=2, previous=started, now=at(60))
    same = decide(corrected, job, pods=pods, previous=invalid, now=at(119))
    assert (same.status.started_at, same.look_again_s) == (started.started_at, 60)

    failed = decide(plan, job, pods=pods, previous=started, now=at(120)).status
    invalid = invalid_status(["spec.x: got 1"], generation=2, previous=failed, now=at(130))
    corrected = a_chain_with_timeout("3h", stages=["mini"], generation=3)
    assert decide(corrected, previous=invalid, now=at(200)).status.started_at == timestamp(at(200))


def test_a_chain_that_is_trained_again_has_its_time_again():
    plan = a_chain_with_timeout(stages=["mini"])
    job, pod = a_committed_job(plan, "mini")
    done = decide(plan, job, pods=(pod,), previous=decide(plan).status, now=at(1)).status
    asked = retrying(plan, "mini", committed_too=True)
    first = decide(asked, job, pods=(pod,), previous=done, now=at(900))
    assert (deleted(first), first.status.started_at) == ([job["metadata"]["name"]], None)
    second = decide(asked, previous=first.status, now=at(901))
    assert (created(second), second.status.started_at) == (["mini"], timestamp(at(901)))


def test_an_export_that_runs_longer_than_the_timeout_fails_and_its_stage_stays_committed():
    before = committed_status(HOUR, "mini")
    plan = a_plan_with(2, timeout="1h", export={"onnx": {}})
    started = decide(plan, previous=before)
    (job,) = [action.job for action in started.actions if isinstance(action, CreateJob)]
    job |= {"status": {"startTime": timestamp(NOON), "active": 1}}
    job["metadata"] |= {"uid": "export", "creationTimestamp": timestamp(NOON)}
    late = decide(plan, job, pods=(ran(job, 0, start=0),), previous=started.status, now=at(60))
    missing = entry(late, "mini").missing_export
    assert (entry(late, "mini").phase, missing.phase, missing.failure_class) == (
        "Committed",
        "Failed",
        FailureClass.DEADLINE_EXCEEDED,
    )
    assert deleted(late) == [job["metadata"]["name"]]
    # The API server refused to delete it.
    refused = decide(plan, job, pods=(ran(job, 0, start=0),), previous=late.status, now=at(61))
    assert (refused.status, deleted(refused)) == (late.status, [job["metadata"]["name"]])


def test_a_stage_that_has_failed_of_its_timeout_stays_failed_while_its_job_cannot_be_deleted():
    job = a_job(HOUR, "mini", active=1)
    first = decide(HOUR, job, pods=(ran(job, 0, start=0),)).status
    late = decide(HOUR, job, pods=(ran(job, 0, start=0),), previous=first, now=at(60)).status
    pods = (ran(job, 0, start=0, end=61), a_pod(job, phase="Pending", number=1))
    name = job["metadata"]["name"]
    refused = decide(HOUR, job, pods=pods, previous=late, now=at(62))
    assert (refused.status, deleted(refused)) == (late, [name])
    retried = decide(retrying(HOUR, "mini"), job, pods=pods, previous=late, now=at(62))
    assert (entry(retried, "mini").phase, deleted(retried)) == ("Pending", [name])
    raised = decide(a_plan_with(2, timeout="2h"), job, pods=(ran(job, 0, start=0),), previous=late, now=at(62))
    assert (entry(raised, "mini").phase, deleted(raised)) == ("Running", [])


@pytest.mark.parametrize(
    ("template", "spec"),
    [
        pytest.param({"timeout": "1h"}, {}, id="timeout"),
        pytest.param({"progressDeadline": "1h"}, {}, id="progressDeadline"),
        pytest.param({}, {"timeout": "1h"}, id="spec.timeout"),
    ],
)
def test_deadlines_hold_for_a_stage_that_runs_while_an_earlier_gate_was_tightened(
    template: dict[str, Any], spec: dict[str, Any]
):
    plan, read = a_plan(template={"image": "x", **template}, **spec), step(7).model_copy(update={"stage": "tiny"})
    done, answered = a_committed_job(plan, "mini")
    job = a_job(plan, "tiny", active=1)
    jobs, pods = (done, job), (answered, ran(job, 0, start=0))
    running = decide(plan, *jobs, pods=pods, progress=read).status
    teacher = {"model": "hf://org/teacher", "gate": {"minMetric": 0.95}}
    tight = a_plan(template={"image": "x", **template}, teacher=teacher, generation=2, **spec)
    early = decide(tight, *jobs, pods=pods, previous=running, progress=read, now=at(59))
    assert (entry(early, "tiny").phase, deleted(early)) == ("Running", [])
    late = decide(tight, *jobs, pods=pods, previous=early.status, progress=read, now=at(60))
    assert (entry(late, "tiny").phase, entry(late, "tiny").message) == ("Pending", "waiting for mini to commit")
    assert deleted(late) == [job["metadata"]["name"]]
