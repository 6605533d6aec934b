"""The simulation notices a damaged operator: each of these mutations breaks an invariant in one of the first histories."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from distillchain_operator.caches import children
from distillchain_operator.caches.children import Children
from distillchain_operator.caches.claims import Claims
from distillchain_operator.caches.known_chains import KnownChains
from distillchain_operator.caches.neighbours import Neighbours
from distillchain_operator.chain_key import ChainKey
from distillchain_operator.controller import job_changes, job_creation
from distillchain_operator.controller.controller import Controller
from distillchain_operator.controller.reader import Reader, Sight
from distillchain_operator.decide import commits, expiry, reconcile, scheduling, stage_steps
from distillchain_operator.decide.actions import CreateJob, DeleteJob
from distillchain_operator.decide.decided import Decided
from distillchain_operator.decide.view import View
from distillchain_operator.jobs import stage_job as jobs
from distillchain_operator.jobs.parsing import observe
from distillchain_operator.jobs.policy import POD_FAILURE_POLICY
from simulation.checking import first_broken

pytestmark = pytest.mark.slow

HISTORIES = 500
DISRUPTED, INTERRUPTED, FATAL = POD_FAILURE_POLICY["rules"]
Patch = Callable[[pytest.MonkeyPatch], None]


def nothing(*_: Any) -> list[Any]:
    return []


def put(where: Any, name: str, value: Any) -> Patch:
    return lambda patch: patch.setattr(where, name, value)


def trusts_caches_for(kind: type) -> Patch:
    """No live read before such an action."""
    is_final = Controller._is_final

    def patched(self: Controller, action: Any, *rest: Any) -> bool:
        return not isinstance(action, kind) and is_final(self, action, *rest)

    return put(Controller, "_is_final", patched)


def trusts_exports(patch: pytest.MonkeyPatch) -> None:
    for module in (commits, stage_steps):
        patch.setattr(module, "is_outdated", lambda job, damaged_at: "" < job.created_at <= damaged_at)


def with_rules(*rules: Any) -> Patch:
    return put(jobs, "POD_FAILURE_POLICY", {"rules": list(rules)})


def keep_the_youngest(view: View) -> list[DeleteJob]:
    found = sorted(view.wanted_unfinished_jobs(), key=lambda job: (job.created_at, job.name))
    newest = {(job.stage, job.digest): job for job in found}
    return [DeleteJob(job.name, job.uid, why="") for job in found if newest[job.stage, job.digest] is not job]


async def read_chain_first(self: Reader, key: ChainKey) -> Sight | None:
    document = await self._read_chain(key)
    found_jobs = await self._cluster.list_jobs(key.namespace, key.name)
    pods = await self._cluster.list_pods(key.namespace, key.name)
    self._children.load(key, jobs=found_jobs, pods=pods)
    if document is None:
        return None
    return Sight(document, observe(chain_uid=document["metadata"]["uid"], jobs=found_jobs.items, pods=pods.items))


def take_written_silently(self: Children, job: Any) -> None:
    self._jobs.write(job)


def take_any_state(self: Any, key: ChainKey, version: int, child: Any) -> bool:
    before = self._of[key].known.get(child.uid)
    self._of[key].known[child.uid] = version, child
    self._home[child.uid] = key
    return before is None or before[1] != child


class Mutation(NamedTuple):
    """A damage.

    Attributes:
        first: where to begin, to save time: a seed shortly before the first history that notices it. After a change of
            the operator or of the simulation it may be another one of the next HISTORIES.
    """

    patch: Patch
    first: int = 0
    has_exports: bool = False


MUTATIONS: dict[str, Mutation] = {
    "a Job is created on caches": Mutation(trusts_caches_for(CreateJob)),
    "a Job is deleted on caches": Mutation(trusts_caches_for(DeleteJob)),
    "a failure is decided on caches": Mutation(put(Decided, "fails", False)),
    "a commit after a retry is decided on caches": Mutation(put(Decided, "commits_after_retry", False), 240),
    "a failed Job of another default image does not count": Mutation(put(stage_steps, "failed_jobs", nothing), 13_260),
    "a suspension is ignored": Mutation(put(reconcile, "follow_suspend", nothing)),
    "pods that stop are not waited for": Mutation(put(scheduling, "_slots_of_pods", nothing)),
    "the periodic list is ignored": Mutation(put(KnownChains, "listed", nothing), 240),
    "an eviction counts as a crash": Mutation(with_rules(INTERRUPTED, FATAL), 270),
    "an interruption counts as a crash": Mutation(with_rules(DISRUPTED, FATAL)),
    "the younger of two Jobs is kept": Mutation(put(reconcile, "_delete_superfluous", keep_the_youngest)),
    "the answer to an own write is no reason to look": Mutation(
        put(Children, "job_written", take_written_silently), 3_140
    ),
    "the chain is read before its Jobs": Mutation(put(Reader, "read", read_chain_first)),
    "an event that is older than an own write counts": Mutation(put(children._OneKind, "_put", take_any_state), 1_430),
    "a Job expires before its result is in status": Mutation(put(expiry, "_is_new", lambda *_: False)),
    "a Job that was refused is created again at once": Mutation(put(job_creation, "REFUSED_RETRY_S", 0.1)),
    "a refused change is tried again at once": Mutation(put(job_changes, "RETRY_S", 0.0)),
    "the limit of running chains is ignored": Mutation(put(Neighbours, "turn_of", lambda *_: None)),
    "a place that is free is not offered": Mutation(put(Neighbours, "_wake_next", nothing)),
    "a place that was given up counts": Mutation(put(Neighbours, "_was_given_up", lambda *_: False), 2_840),
    "the place of a deleted chain is kept": Mutation(put(Neighbours, "forget", nothing)),
    "the chains that ran before a restart are unknown": Mutation(put(Neighbours, "note_stored", nothing)),
    "other chains with the stage are ignored": Mutation(put(Neighbours, "peers_of", lambda *_: {})),
    "who waits for a stage is not told": Mutation(put(Claims, "note", nothing)),
    "a damaged stage is committed by its export": Mutation(trusts_exports, 230, has_exports=True),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_history_breaks_an_invariant_if(name: str, monkeypatch: pytest.MonkeyPatch):
    patch, first, has_exports = MUTATIONS[name]
    patch(monkeypatch)
    assert first_broken(range(first, first + HISTORIES), has_exports=has_exports) is not None
