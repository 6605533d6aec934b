"""Chains that had ended when a release gave their stages other digests."""

from __future__ import annotations

from typing import Any

import pytest

from chain_builders import IMAGE
from distillchain_api.retry_request import new_retry
from distillchain_operator.api_server.cluster import ApiError
from many_chains import Namespace, end, is_active

OTHER = "0" * 64
EVIDENCE = {"controls": ["Direct"], "seeds": 2}


def upgrade(chains: Namespace, *, parts: tuple[str, ...] = ("stages", "evidence")) -> None:
    """The present release starts; an earlier one has stored these chains, with other digests in these parts of status."""
    for server in chains.servers.values():
        entries = [entry for part in parts for entry in server.chain.get("status", {}).get(part, [])]
        # The name of a Job ends with a hash of what decides it, such as the digest.
        names = {entry["job"]: f"{entry['job'][:-10]}{OTHER[:10]}" for entry in entries if "job" in entry}
        for entry in entries:
            entry["digest"] = OTHER
            entry |= {"job": names[entry["job"]]} if "job" in entry else {}
        for job in server.jobs:
            metadata = job["metadata"]
            if metadata["name"] in names:
                metadata["name"] = names[metadata["name"]]
                metadata["labels"]["distillchain.io/digest"] = OTHER[:16]
        for pod in server.pods:
            labels = pod["metadata"]["labels"]
            if (job_name := labels["batch.kubernetes.io/job-name"]) in names:
                labels |= {"batch.kubernetes.io/job-name": names[job_name], "distillchain.io/digest": OTHER[:16]}
    chains.start_operator()


async def a_chain(*, limit: int = 0, **spec: Any) -> Namespace:
    chains = Namespace(limit)
    chains.apply("a", **spec)
    await chains.settle()
    return chains


async def a_chain_with_running_controls(*, limit: int = 0) -> Namespace:
    chains = await a_chain(limit=limit, stages=["mini"], evidence=EVIDENCE)
    chains.commit("a")
    await chains.settle()
    assert chains.status("a")["phase"] == "Succeeded"
    return chains


def controls(chains: Namespace) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = chains.status("a")["evidence"]
    return found


async def test_a_job_that_was_refused_is_tried_again():
    chains = Namespace()
    chains.apply("a")
    chains.servers["a"].refusal = ApiError(403, "violates PodSecurity")
    await chains.settle()
    assert chains.status("a")["phase"] == "Failed"
    chains.servers["a"].refusal = None

    upgrade(chains)
    await chains.settle()

    assert chains.created == ["a/mini"]


async def test_a_problem_that_is_over_leaves_no_trace(monkeypatch: pytest.MonkeyPatch):
    async def refuse(*_: Any, **__: Any) -> Any:
        raise ApiError(403, "jobs is forbidden")

    chains = await a_chain(stages=["mini"])
    chains.fail("a")
    await chains.settle()
    before = chains.status("a")
    upgrade(chains)
    with monkeypatch.context() as patched:
        patched.setattr(chains.servers["a"], "list_jobs", refuse)
        with pytest.raises(ApiError):
            await chains.settle()

    chains.report("a")
    await chains.settle()

    assert chains.status("a")["message"] == before["message"]
    assert chains.created == ["a/mini"]


@pytest.mark.parametrize("committed_too", [False, True])
async def test_a_retry_that_names_no_stage_starts_nothing(committed_too: bool):
    chains = await a_chain(stages=["mini"])
    chains.commit("a")
    await chains.settle()
    upgrade(chains)

    chains.annotate("a", new_retry(["no-such-stage"], token="1", committed_too=committed_too))
    await chains.settle()

    assert chains.created == ["a/mini"]
    assert chains.status("a")["result"]


async def test_a_retry_of_the_failed_stage_trains_the_chain_again():
    chains = await a_chain(stages=["mini"])
    chains.fail("a")
    await chains.settle()
    upgrade(chains)

    chains.annotate("a", new_retry(["mini"], token="1"))
    await chains.settle()

    assert chains.created == ["a/mini", "a/mini"]


async def test_controls_that_still_ran_are_stopped_and_say_why():
    chains = await a_chain_with_running_controls()

    upgrade(chains)
    await chains.settle()

    assert chains.running() == []
    assert {entry["message"] for entry in controls(chains)} == {
        "not continued: this release gives it another digest; edit or retry the chain to train it again"
    }
    assert chains.status("a")["result"]


async def test_controls_that_have_ended_are_left_alone_if_only_their_digests_change():
    template = {"image": IMAGE, "ttlAfterFinished": "1h"}  # such a chain is looked at until its Jobs have expired
    chains = await a_chain(stages=["mini"], evidence=EVIDENCE, template=template)
    while chains.running():
        chains.commit("a")
        await chains.settle()
    before = list(chains.created)

    upgrade(chains, parts=("evidence",))
    await chains.settle()

    assert chains.created == before


async def test_a_control_in_a_pause_holds_no_place():
    chains = await a_chain_with_running_controls(limit=1)
    paused = next(entry for entry in controls(chains) if entry["phase"] == "Running")
    paused.update(phase="Pending", nextStartAt="2026-01-01T11:59:00Z")
    for job in filter(is_active, chains.servers["a"].jobs):
        end(job, "Failed", reason="BackoffLimitExceeded")
    upgrade(chains)

    chains.apply("b", second=9)
    await chains.settle()

    assert chains.running() == ["b"]


async def test_controls_that_waited_for_their_turn_block_nobody():
    chains = Namespace(1)
    chains.apply("a", stages=["mini"])
    await chains.settle()
    chains.apply("busy", second=1)
    await chains.settle()
    chains.commit("a")
    await chains.settle()
    assert chains.running() == ["busy"]
    chains.apply("a", stages=["mini"], evidence=EVIDENCE)
    await chains.settle()
    assert "WaitingForTurn" in {entry.get("admission") for entry in controls(chains)}
    for entry in [*chains.status("a")["stages"], *controls(chains)]:
        entry["digest"] = OTHER
    chains.start_operator()
    chains.apply("young", second=9)
    await chains.settle()

    chains.delete("busy")
    await chains.settle()

    assert chains.running() == ["young"]
