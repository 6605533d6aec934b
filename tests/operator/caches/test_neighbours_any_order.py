"""Chains of one namespace through random histories: the limit holds, no stage is trained twice, nobody waits for ever."""

from __future__ import annotations

import random
from typing import Any

import pytest

from chain_builders import IMAGE, own_store
from distillchain_api.retry_request import new_retry
from distillchain_operator.jobs.labels import CHAIN_LABEL, DIGEST_LABEL, STAGE_LABEL
from many_chains import Namespace, is_active

STORES = ("shared", "other")
HISTORIES = 12


class History:
    """What users, trainers, Kueue and restarts of the operator do, in random order."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.limit = self.rng.choice([0, 1, 2, 3])
        self.namespace = Namespace(self.limit)
        self.committed: set[tuple[str, str]] = set()
        self.specs: dict[str, dict[str, Any]] = {}
        self.queued = self.rng.random() < 0.3  # Kueue decides then who runs
        self.created = 0

    def create(self) -> None:
        self.created += 1
        name = f"c{self.created}"
        spec: dict[str, Any] = {
            "storage": own_store(self.rng.choice(STORES)),
            "stages": ["mini", "tiny", "femto"][: self.rng.randint(1, 3)],
            "maxParallelJobs": self.rng.choice([1, 1, 2]),
        }
        if self.queued and self.rng.random() < 0.5:
            spec["template"] = {"image": IMAGE, "queueName": self.rng.choice(["gpus", "more"])}
        if self.rng.random() < 0.3 and len(spec["stages"]) > 1:
            spec["evidence"] = {"controls": ["Direct"], "seeds": 2}
        self.specs[name] = spec
        self.namespace.apply(name, second=self.rng.randint(0, 59), **spec)

    def jobs(self, *, held: bool = False) -> list[tuple[str, dict[str, Any]]]:
        found = [(name, job) for name, server in self.namespace.servers.items() for job in server.jobs]
        if held:
            return [
                (name, job)
                for name, job in found
                if job["spec"].get("suspend") and "kueue.x-k8s.io/queue-name" in job["metadata"]["labels"]
            ]
        return [(name, job) for name, job in found if is_active(job)]

    def end_a_job(self) -> None:
        if not (jobs := self.jobs()):
            return
        name, job = self.rng.choice(jobs)
        if self.rng.random() < 0.15:
            self.namespace.fail_job(name, job)
            return
        if self.namespace.plan(name).stage(job["metadata"]["labels"][STAGE_LABEL]) is None:
            return  # an edit that the operator has not seen yet
        key = self.specs[name]["storage"]["uri"], job["metadata"]["labels"][DIGEST_LABEL]
        self.namespace.commit_job(name, job, reused=key in self.committed)
        self.committed.add(key)

    def admit(self) -> None:
        if jobs := self.jobs(held=True):
            name, job = self.rng.choice(jobs)
            job["spec"]["suspend"] = False
            self.namespace.report(name)

    def run_a_pod(self) -> None:
        without = [(name, job) for name, job in self.jobs() if not self.namespace.pods_of(name, job)]
        if without:
            self.namespace.run_pod(*self.rng.choice(without))

    def suspend(self) -> None:
        name = self.rng.choice(list(self.specs))
        self.namespace.apply(name, **self.specs[name], suspend=True)

    def resume(self, name: str = "") -> None:
        name = name or self.rng.choice(list(self.specs))
        if self.namespace.servers[name].chain["spec"].get("suspend"):
            self.namespace.apply(name, **self.specs[name])

    def stop_pods(self) -> None:
        for name, server in self.namespace.servers.items():
            if any(job["spec"].get("suspend") for job in server.jobs):
                self.namespace.interrupt(name)

    def edit(self) -> None:
        name = self.rng.choice(list(self.specs))
        self.specs[name]["stages"] = ["mini", "tiny", "femto", "atto"][: self.rng.randint(1, 4)]
        self.specs[name].pop("evidence", None)
        self.namespace.apply(name, **self.specs[name])

    def retry(self, name: str = "") -> None:
        name = name or self.rng.choice(list(self.specs))
        entries = [*self.namespace.status(name).get("stages", []), *self.namespace.status(name).get("evidence", [])]
        if failed := [entry["name"] for entry in entries if entry["phase"] == "Failed"]:
            self.namespace.annotate(name, new_retry(failed, token=str(self.rng.random())))

    def delete(self) -> None:
        if len(self.specs) > 2:
            name = self.rng.choice(list(self.specs))
            del self.specs[name]
            self.namespace.delete(name)

    def restart(self) -> None:
        self.namespace.start_operator()
        self.rng.shuffle(self.namespace.news)

    async def look(self) -> None:
        namespace = self.namespace
        before = self.running()
        while namespace.news:
            namespace.news.rotate(-self.rng.randrange(len(namespace.news)))
            await namespace.look()
            self.check(before)
            before = self.running()

    def running(self) -> set[str]:
        return {name for name, _ in self.jobs()}

    def check(self, before: set[str]) -> None:
        running = self.running()
        # A chain that runs is never stopped, and Kueue is not limited.
        if self.limit and not self.queued and running - before:
            assert len(running) <= self.limit, f"{running} run"
        jobs = [job["metadata"]["labels"] for _, job in self.jobs()]
        keys = [
            (self.specs[labels[CHAIN_LABEL]]["storage"]["uri"], labels[DIGEST_LABEL])
            for labels in jobs
            if labels[STAGE_LABEL] != "evidence" and labels[CHAIN_LABEL] in self.specs
        ]
        training = [key for key in keys if key not in self.committed]
        assert self.queued or len(training) == len(set(training)), "two chains train one stage"

    async def settle(self) -> None:
        """Without further accidents all chains end."""
        for _ in range(400):
            await self.look()
            states = {name: self.namespace.status(name).get("phase") for name in self.specs}
            if set(states.values()) == {"Succeeded"} and not self.jobs() and not self.jobs(held=True):
                return
            for name in self.specs:
                self.resume(name)
                self.retry(name)
            self.stop_pods()
            self.admit()
            await self.look()
            if jobs := self.jobs():
                name, job = self.rng.choice(jobs)
                key = self.specs[name]["storage"]["uri"], job["metadata"]["labels"][DIGEST_LABEL]
                self.namespace.commit_job(name, job, reused=key in self.committed)
                self.committed.add(key)
        raise AssertionError({name: self.namespace.status(name).get("message") for name in self.specs})


async def run_history(seed: int) -> None:
    history = History(seed)
    for _ in range(3):
        history.create()
    acts = [history.create, history.suspend, history.resume, history.stop_pods, history.edit, history.retry]
    acts += [history.delete, history.restart, history.run_a_pod, history.run_a_pod]
    acts += [history.end_a_job, history.admit] * 4
    for _ in range(40):
        history.rng.choice(acts)()
        if history.rng.random() < 0.7:
            await history.look()
    await history.settle()


@pytest.mark.parametrize("seed", range(HISTORIES))
async def test_no_history_breaks_the_limit_trains_a_stage_twice_or_ends_in_a_deadlock(seed: int) -> None:
    await run_history(seed)
