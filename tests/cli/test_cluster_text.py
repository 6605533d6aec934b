"""Output about chains on a cluster, tested on plain values: Events, lists, suspend and retry."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pytest

from chain_builders import a_document
from distillchain_api.resource.status import ChainStatus
from distillchain_cli.changes.retry import retry
from distillchain_cli.changes.suspend import set_suspend
from distillchain_cli.status.events import events_of
from distillchain_cli.status.view import list_table, status_text
from distillchain_operator.jobs.labels import EVENT_JOB_ANNOTATION, EVENT_STAGE_ANNOTATION
from distillchain_operator.jobs.stage_job import job_name
from distillchain_operator.status.transitions import transitions

CREATED_AT = "2026-01-01T11:00:00Z"
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def a_chain(name: str = "relay", *, stages: Any = ("mini", "tiny"), status: Any = None, **spec: Any) -> dict[str, Any]:
    chain = a_document(name, stages=list(stages))
    chain["metadata"] |= {"namespace": "ml", "uid": "u", "generation": 1, "creationTimestamp": CREATED_AT}
    chain["spec"] |= spec
    return chain | {"status": status or {}}


def an_event(
    kind: str,
    name: str,
    *,
    uid: str = "",
    reason: str = "StageStarted",
    note: str = "",
    annotations: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    return {
        "metadata": {"annotations": dict(annotations or {})},
        "eventTime": "2026-01-01T11:30:00Z",
        "involvedObject": {"kind": kind, "name": name, "uid": uid},
        "reason": reason,
        "message": note,
    }


def pod_name(job: str) -> str:
    """The name that the API server derives from the Job's generateName."""
    return f"{job}-"[:58] + "x7k2q"


@pytest.mark.parametrize("name_chars", [5, 30, 31, 32, 33, 36, 37, 38, 39, 43, 63])
def test_events_of_pods_are_found_for_chain_names_of_any_length(name_chars: int):
    stage = "distil-medium"
    name = "n" * name_chars
    job = job_name(name, stage, "a1" * 5)
    events = [an_event("Job", job), an_event("Pod", pod_name(job)), an_event("Pod", f"{job[:-12]}-x7k2q")]
    status = stages_with("Running", name=stage, job=job)

    found = events_of(a_chain(name, stages=[stage], status=status), events)

    assert [(event.kind, event.stage) for event in found] == [("Job", stage), ("Pod", stage)]


@pytest.mark.parametrize(
    "chain, stage, other, other_stage",
    [
        pytest.param("relay", "v2-mini", "relay-v2", "mini", id="a dash more or less"),
        pytest.param("relay-v2", "mini", "relay", "v2-mini", id="the other way round"),
        pytest.param("n" * 62 + "a", "mini", "n" * 62 + "b", "mini", id="long names cut alike"),
    ],
)
def test_events_of_another_chain_whose_job_names_start_alike_are_left_out(
    chain: str, stage: str, other: str, other_stage: str
):
    ours, theirs = job_name(chain, stage, "a1" * 5), job_name(other, other_stage, "b2" * 5)
    assert ours[:-10] == theirs[:-10]
    events = [an_event(kind, name) for job in (theirs, ours) for kind, name in [("Job", job), ("Pod", pod_name(job))]]
    named = {EVENT_STAGE_ANNOTATION: other_stage, EVENT_JOB_ANNOTATION: theirs}
    events.append(an_event("DistillationChain", other, uid="theirs", annotations=named))

    found = events_of(a_chain(chain, stages=[stage], status=stages_with("Running", name=stage, job=ours)), events)

    assert [event.name for event in found] == [ours, pod_name(ours)]


@pytest.mark.parametrize("is_short", [False, True])
def test_events_of_kueue_are_found_by_the_name_of_its_workload(is_short: bool):
    """Of the stage's Job, and not of a Job whose name starts alike."""
    ours = job_name("relay", "a-stage-with-a-long-name", "0123456789", nodes=1)
    base = f"job-{ours}"[:57] if is_short else f"job-{ours}"
    events = [
        an_event("Workload", f"{base}-1a2b3", reason="Pending", note="insufficient unused quota"),
        an_event("Workload", f"{base}-x-1a2b3", reason="Pending", note="of another Job"),
    ]

    found = events_of(a_chain(status=stages_with("Pending", name="a-stage-with-a-long-name", job=ours)), events)
    assert [(event.stage, event.note) for event in found] == [("a-stage-with-a-long-name", "insufficient unused quota")]


def test_events_of_a_replaced_job_are_recognised_by_the_event_of_its_start():
    job = job_name("relay", "mini", "a1" * 5)
    running = ChainStatus.parse(stages_with("Running", job=job))
    (started,) = transitions(ChainStatus(), running)
    events = [
        an_event("DistillationChain", "relay", uid="u", reason=started.reason, annotations=started.annotations),
        an_event("Pod", pod_name(job)),
    ]

    found = events_of(a_chain(status=stages_with("Pending")), events)

    assert [(event.kind, event.stage) for event in found] == [("DistillationChain", "mini"), ("Pod", "mini")]


def test_a_status_of_another_release_does_not_hide_the_other_chains():
    later = a_chain("later", status={"phase": "Failed", "stages": [{"phase": "NotYetKnown"}]})

    for wide in (False, True):
        header, first, second = list_table([later, a_chain()], now=NOON, everywhere=True, wide=wide).splitlines()

        assert header.split()[:3] == ["NAMESPACE", "NAME", "PHASE"]
        assert first.split()[:3] == ["ml", "later", "Failed"]
        assert "another release of the operator wrote this status" in first
        assert second.split()[:3] == ["ml", "relay", "Pending"]


def test_a_failed_stage_shows_its_progress():
    status = ChainStatus.parse(
        {
            "phase": "Failed",
            "stages": [
                {
                    "name": "mini",
                    "phase": "Failed",
                    "digest": "d",
                    "message": "ran longer than its timeout",
                    "progress": {"phase": "Train", "step": 4200, "of": 21040},
                }
            ],
        }
    )

    assert status_text(a_chain(), status).splitlines()[-1].endswith("  Train 4200/21040 ran longer than its timeout")


def test_warnings_of_the_trainers_are_below_the_stages():
    status = ChainStatus.parse(stages_with("Committed", warnings=["class high is never predicted", "second"]))

    assert status_text(a_chain(), status).splitlines()[-3:] == [
        "",
        "mini: warning: class high is never predicted",
        "mini: warning: second",
    ]


class Recorder:
    """A cluster with one chain and without Jobs."""

    def __init__(self, chain: dict[str, Any]) -> None:
        self.chain = chain

    def fetch_chain(self, name: str) -> dict[str, Any]:
        return self.chain

    def annotate_chain(self, chain: dict[str, Any], annotations: dict[str, str]) -> None:
        self.annotations = annotations

    def set_suspend(self, chain: dict[str, Any], suspend: bool) -> None:
        pass


@pytest.mark.parametrize("name, asked", [("mini", None), ("teacher", "teacher")])
def test_a_retry_of_a_failed_export_names_its_stage(name: str, asked: str | None):
    missing = {"export": "onnx", "phase": "Failed", "job": "e", "message": "why", "failureClass": "Crashed"}
    cluster: Any = Recorder(a_chain(status=stages_with("Committed", name=name, missingExport=missing)))

    want = f"retrying export onnx of stage {name} (Crashed); the operator creates another Job for it"
    assert retry(cluster, "relay", asked, clock=lambda: datetime(2026, 1, 1, tzinfo=UTC)) == want
    assert cluster.annotations == {"distillchain.io/retry": f"{name}@2026-01-01T00:00:00.000+00:00"}


def stages_with(phase: str, *, name: str = "mini", **more: Any) -> dict[str, Any]:
    return {"phase": "Failed", "stages": [{"name": name, "phase": phase, "digest": "d", **more}]}


@pytest.mark.parametrize(
    "phase, suspended, want",
    [
        ("Running", False, "suspended relay: the running stage saves its state and stops; to continue: distillchain resume relay"),
        ("Committed", False, "suspended relay: no stage is running; to continue: distillchain resume relay"),
        ("Failed", False, "suspended relay: no stage is running; to continue: distillchain resume relay"),
        ("Suspended", True, "resumed relay: it continues from its saved state; to follow it: distillchain status relay -w"),
        ("Committed", True, "resumed relay; to follow it: distillchain status relay -w"),
    ],
)  # fmt: skip
def test_suspend_and_resume_say_what_happens_next(phase: str, suspended: bool, want: str):
    cluster: Any = Recorder(a_chain(status=stages_with(phase), suspend=suspended))

    assert set_suspend(cluster, "relay", suspend=not suspended) == want


@pytest.mark.parametrize(
    "suspended, want",
    [
        (False, "retrying stage mini (DataInvalid); the operator creates another Job for it"),
        (True, "retrying stage mini (DataInvalid); the operator creates another Job for it once the chain is resumed: distillchain resume relay"),
    ],
)  # fmt: skip
def test_a_retry_of_a_suspended_chain_says_that_it_waits(suspended: bool, want: str):
    cluster: Any = Recorder(
        a_chain(status=stages_with("Failed", job="j", failureClass="DataInvalid"), suspend=suspended)
    )

    assert retry(cluster, "relay", None) == want
