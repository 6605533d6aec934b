"""Edits of chains on a real API server."""

from __future__ import annotations

import pytest

from chain_builders import a_document
from relay import Relay

pytestmark = [pytest.mark.cluster, pytest.mark.xdist_group("operator")]


def test_an_edit_of_the_first_stage_of_a_succeeded_chain_runs_all_of_it_again(relay: Relay):
    relay.apply(a_document())
    relay.commit("mini")
    relay.commit("tiny")
    before = relay.wait_for_phase("Succeeded")
    edited = a_document()
    edited["spec"]["stages"][0]["training"] = {"epochs": 7}
    relay.apply(edited)
    relay.commit("mini")
    relay.commit("tiny")
    after = relay.wait_for_phase("Succeeded")
    made = [{entry["job"] for entry in status["stages"]} for status in (before, after)]
    assert len(made[0] | made[1]) == 4


def test_an_edit_of_the_second_stage_replaces_its_running_job_and_keeps_the_first(relay: Relay):
    relay.apply(a_document())
    relay.commit("mini")
    relay.run(relay.wait_for_pod("tiny"))
    first_tiny = relay.jobs("tiny")[0]["metadata"]["name"]
    edited = a_document()
    edited["spec"]["stages"][1]["training"] = {"epochs": 7}
    relay.apply(edited)
    relay.wait("the old Job gone", lambda: first_tiny not in [job["metadata"]["name"] for job in relay.jobs("tiny")])
    relay.commit("tiny")
    relay.wait_for_phase("Succeeded")
    assert len(relay.jobs("mini")) == 1
    assert len(relay.jobs("tiny")) == 1


def test_an_edit_of_the_image_does_not_replace_a_running_stage(relay: Relay):
    relay.apply(a_document(stages=["mini"]))
    pod = relay.wait_for_pod("mini")
    relay.run(pod)
    relay.wait("mini running", lambda: relay.stage("mini").get("message") is None)
    relay.apply(a_document(stages=["mini"], template={"image": "registry.example/another:2"}))
    relay.wait_for_operator()
    assert relay.wait_for_pod("mini") == pod
    relay.commit("mini")
    relay.wait_for_phase("Succeeded")
    assert len(relay.jobs()) == 1


def test_an_edit_of_the_image_replaces_a_job_whose_pod_cannot_start(relay: Relay):
    relay.apply(a_document(stages=["mini"]))
    pod = relay.wait_for_pod("mini")
    relay.hold(pod, reason="ImagePullBackOff", message='Back-off pulling image "registry.example/typo"')
    assert "ImagePullBackOff" in relay.wait_for_condition("Stalled")["message"]
    relay.apply(a_document(stages=["mini"], template={"image": "registry.example/corrected:2"}))

    def is_corrected() -> bool:
        images = [p["spec"]["containers"][0]["image"] for p in relay.pods("mini")]
        return images == ["registry.example/corrected:2"]

    relay.wait("a pod with the other image", is_corrected)
    relay.commit("mini")
    assert len(relay.jobs()) == 1
