"""The simulation notices a damaged controller: each of these mutations breaks an invariant in one of the first histories."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from distillchain_operator import jobs, reconcile, scheduling
from distillchain_operator.actions import CreateJob, DeleteJob
from distillchain_operator.controller import Controller
from distillchain_operator.decided import Decided
from distillchain_operator.known_chains import KnownChains
from distillchain_operator.policy import POD_FAILURE_POLICY
from simulation.checking import first_broken

pytestmark = pytest.mark.slow

HISTORIES = 200
DISRUPTED, INTERRUPTED, FATAL = POD_FAILURE_POLICY["rules"]
Patch = Callable[[pytest.MonkeyPatch], None]


def nothing(*_: Any) -> list[Any]:
    return []


def trusts_caches_for(kind: type) -> Patch:
    """No live read before such an action."""
    is_final = Controller._is_final

    def patched(self: Controller, action: Any, *rest: Any) -> bool:
        return not isinstance(action, kind) and is_final(self, action, *rest)

    return lambda patch: patch.setattr(Controller, "_is_final", patched)


def with_rules(*rules: Any) -> Patch:
    return lambda patch: patch.setattr(jobs, "POD_FAILURE_POLICY", {"rules": list(rules)})


MUTATIONS: dict[str, Patch] = {
    "a Job is created on caches": trusts_caches_for(CreateJob),
    "a Job is deleted on caches": trusts_caches_for(DeleteJob),
    "a failure is decided on caches": lambda patch: patch.setattr(Decided, "fails", False),
    "a commit after a retry is decided on caches": lambda patch: patch.setattr(Decided, "commits_after_retry", False),
    "a suspension is ignored": lambda patch: patch.setattr(reconcile, "follow_suspend", nothing),
    "pods that stop are not waited for": lambda patch: patch.setattr(scheduling, "_slots_of_pods", nothing),
    "the periodic list is ignored": lambda patch: patch.setattr(KnownChains, "listed", lambda *_: None),
    "an eviction counts as a crash": with_rules(INTERRUPTED, FATAL),
    "an interruption counts as a crash": with_rules(DISRUPTED, FATAL),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_history_breaks_an_invariant_if(name: str, monkeypatch: pytest.MonkeyPatch):
    MUTATIONS[name](monkeypatch)
    assert first_broken(range(HISTORIES)) is not None
