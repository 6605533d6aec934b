"""Plans are kept for the chains that were looked at last, and never for a chain that has changed."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from chain_builders import IMAGE, a_document
from distillchain_api.faults import BadDocument
from distillchain_operator.caches import recent_plans
from distillchain_operator.caches.recent_plans import RecentPlans
from distillchain_operator.decide.late_exports import exporter_of
from distillchain_operator.jobs.stage_job import JobDefaults, build_job


def a_stored_document(name: str = "relay") -> dict[str, Any]:
    document = a_document(name)
    document["metadata"] |= {"namespace": "ml", "uid": name, "generation": 1, "resourceVersion": "1"}
    return document


def test_a_plan_is_kept_while_only_status_is_written():
    plans, document = RecentPlans(JobDefaults(IMAGE)), a_stored_document()
    first = plans.of(document)
    written = copy.deepcopy(document) | {"status": {"phase": "Running"}}
    written["metadata"] |= {"resourceVersion": "2", "managedFields": [{"manager": "distillchain"}]}
    assert plans.of(written) is first


@pytest.mark.parametrize("generation", [1, 2])  # etcd may have been restored from a backup
def test_an_edit_is_read(generation: int):
    plans, document = RecentPlans(JobDefaults(IMAGE)), a_stored_document()
    plans.of(document)
    edited = copy.deepcopy(document)
    edited["metadata"]["generation"] = generation
    edited["spec"]["suspend"] = True
    assert plans.of(edited).plan.chain.spec.suspend
    assert not plans.of(document).plan.chain.spec.suspend


def test_a_request_to_retry_is_read():
    plans, document = RecentPlans(JobDefaults(IMAGE)), a_stored_document()
    plans.of(document)
    retried = copy.deepcopy(document)
    retried["metadata"]["annotations"] = {"distillchain.io/retry": "1 mini"}
    assert plans.of(retried).plan.chain.metadata.annotations == retried["metadata"]["annotations"]


def test_an_invalid_spec_is_refused_each_time():
    plans, document = RecentPlans(JobDefaults(IMAGE)), a_stored_document()
    plans.of(document)
    invalid = copy.deepcopy(document)
    del invalid["spec"]["teacher"]
    for _ in range(2):
        with pytest.raises(BadDocument, match="teacher"):
            plans.of(invalid)


def test_only_the_last_ones_are_kept(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(recent_plans, "KEPT", 2)
    plans, documents = RecentPlans(JobDefaults(IMAGE)), [a_stored_document(name) for name in "abc"]
    first, second = plans.of(documents[0]), plans.of(documents[1])
    assert plans.of(documents[0]) is first
    plans.of(documents[2])
    assert plans.of(documents[0]) is first
    assert plans.of(documents[1]) is not second


def test_each_vertex_has_its_own_job_also_if_it_was_made_from_another():
    plan, wanted = RecentPlans(JobDefaults(IMAGE)).of(a_stored_document())
    for stage in plan.vertices:
        assert wanted.of(stage).manifest == build_job(plan.chain, stage, defaults=JobDefaults(IMAGE))
        assert wanted.of(stage) is wanted.of(stage)
        assert wanted.of(exporter_of(plan, stage)).name != wanted.of(stage).name
