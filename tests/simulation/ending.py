"""The end of a history: without further disturbance, every chain must succeed soon, and then nothing happens any more."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from typing import TYPE_CHECKING

from distillchain_operator.caches.children import Kind
from simulation.chain import Chain
from simulation.etcd import KINDS
from simulation.objects import digest_of, is_deleting, is_live, is_over, is_succeeded, is_suspended, owner_of
from simulation.operators import MAX_BACKOFF_S

if TYPE_CHECKING:
    from simulation.history import History

CALM_STEPS = 30
MOST_ROUNDS = 150
MOST_STATUS_WRITES = 100
MOST_REQUESTS = 400
MOST_RETRIES = 4
RESYNC_S = 300.0


class Ending:
    """What has to happen in the end."""

    def __init__(self, history: History) -> None:
        self.rng, self.etcd, self.faults = history.rng, history.etcd, history.faults
        self.namespaces, self.operators = history.namespaces, history.operators
        self.clusters, self.users = history.clusters, history.users

    @property
    def _chains(self) -> list[Chain]:
        return [chain for place in self.namespaces.values() for chain in place.chains.values()]

    def run(self) -> None:
        """Raises: Broken."""
        self.faults.refused.clear()
        self.faults.lost = 0.0
        if self.rng.random() < 0.2:
            self._lose_an_edit()
        # The last time that what was lost is found: from now on, no periodic list may be needed.
        for operator in self.operators:
            for name in operator.watches:
                for kind in Kind:
                    operator.list_again(kind, name)
            operator.resync()
        before = self._costs()
        self._agree()
        self._act_calmly()
        if self.rng.random() < 0.2:
            self._rest_suspended()
        for chain in self._chains:
            if chain.document["spec"].get("suspend"):
                chain.edit({"suspend": False})
        self._settle()
        for _ in range(MOST_RETRIES):
            if all(chain.has_ended for chain in self._chains):
                break
            self._check_rest()
            for users in self.users.values():
                users.retry()
            self._settle()
        for chain in self._chains:
            if not chain.has_ended:
                self.etcd.fail(f"nothing happens any more, and {chain.name} is {chain.phase}: {chain.status}")
        writes, requests = (now - then for now, then in zip(self._costs(), before, strict=True))
        if writes > MOST_STATUS_WRITES * len(self._chains) or requests > MOST_REQUESTS * len(self._chains):
            self.etcd.fail(f"{writes} status writes and {requests} requests until the end")
        self._check_rest()
        self._check_what_is_left()

    def _lose_an_edit(self) -> None:
        """No watch reports the last edit of a chain."""
        for users in self.users.values():
            self._round()
            for chain in users.namespace.chains.values():
                users.edit(chain)
        for operator in self.operators:
            for name in operator.watches:
                operator.lose("chains", name)

    def _agree(self) -> None:
        """Operators that see everything keep one Job of each stage."""
        for _ in range(2):
            self._operate()
            self.etcd.now += timedelta(seconds=MAX_BACKOFF_S)
        for place in self.namespaces.values():
            # Those of a deleted chain are left to the garbage collector.
            live = [job for chain in place.chains.values() for job in chain.jobs if is_live(job)]
            # The Job controller completes a Job that has answered.
            open_ones = [job for job in live if not any(map(is_succeeded, place.pods_of(job)))]
            stages = Counter((owner_of(job), digest_of(job)) for job in open_ones)
            if twice := [digest for (_, digest), count in stages.items() if count > 1]:
                self.etcd.fail(f"two Jobs of stage {twice[0]} are kept")

    def _act_calmly(self) -> None:
        """Chains are suspended and resumed, and everything acts between the requests of the operators; watches lag behind, but report every change."""
        rng = self.rng
        for _ in range(CALM_STEPS):
            self.etcd.now += timedelta(seconds=rng.choice([0, 0, 1, 5]))
            operator = rng.choice(self.operators)
            cluster = self.clusters[rng.choice(list(self.clusters))]
            what = rng.randrange(20)
            if what < 2:
                self.users[cluster.namespace.name].suspend_or_resume()
            elif what < 9:
                operator.move(1)
            elif what < 13:
                operator.deliver(rng.choice(KINDS), rng.choice(operator.watches), rng.choice([1, 99]))
            elif what < 17:
                cluster.act_on_jobs(well=False)
            else:
                cluster.act_on_pods(well=rng.random() < 0.3)
            self.etcd.check()

    def _costs(self) -> tuple[int, int]:
        writes = sum(chain.status_writes for place in self.namespaces.values() for chain in place.known.values())
        return writes, sum(operator.cluster.requests for operator in self.operators)

    def _rest_suspended(self) -> None:
        """A chain that is suspended trains nothing, and keeps no other one waiting."""
        suspended = [chain for chain in self._chains if self.rng.random() < 0.6]
        for chain in suspended:
            chain.edit({"suspend": True})
        for chain in self._chains:
            if chain not in suspended and chain.document["spec"].get("suspend"):
                chain.edit({"suspend": False})
        self._agree()
        for chain in suspended:
            for job in chain.jobs:
                if is_live(job) and not is_suspended(job) and not any(map(is_succeeded, chain.namespace.pods_of(job))):
                    self.etcd.fail(f"Job {job['metadata']['name']} of a suspended chain is not suspended")
        self._settle()
        self._check_rest()
        for chain in suspended:
            if any(not is_over(pod) for job in chain.jobs for pod in chain.namespace.pods_of(job)):
                self.etcd.fail("a suspended chain trains")
            if chain.phase not in ("Suspended", "Succeeded", "Failed"):
                self.etcd.fail(f"a suspended chain is {chain.phase}")
        for chain in self._chains:
            if chain not in suspended and chain.phase not in ("Succeeded", "Failed"):
                self.etcd.fail(f"{chain.name} is {chain.phase} while others are suspended: {chain.status}")

    def _settle(self) -> None:
        """Goes on until nothing happens and nothing is due."""
        for _ in range(MOST_ROUNDS):
            version = self.etcd.version
            self._round()
            if self.etcd.version != version or any(cluster.is_busy for cluster in self.clusters.values()):
                continue
            due = [operator.due_at for operator in self.operators if operator.due_at is not None]
            due += [cluster.due_at for cluster in self.clusters.values() if cluster.due_at is not None]
            if not due:
                return
            self.etcd.now += timedelta(seconds=max(min(due) - self.etcd.seconds, 0) + 0.01)
        states = {chain.name: chain.status for chain in self._chains}
        self.etcd.fail(f"no end after {MOST_ROUNDS} rounds: {states}")

    def _operate(self) -> None:
        """Every operator is up to date and does what it can."""
        for operator in self.operators:
            for kind in KINDS:
                for name in operator.watches:
                    operator.deliver(kind, name, len(self.etcd.changes[kind]))
            operator.work()

    def _round(self) -> None:
        self._operate()
        for cluster in self.clusters.values():
            cluster.act_on_jobs(well=True)
            cluster.act_on_pods(well=True)
        self.etcd.check()
        self.etcd.now += timedelta(seconds=1)

    def _check_rest(self) -> None:
        """At rest, chains cost nothing but the periodic list."""
        # A chain that was edited after its success is read once more.
        self._look_periodically()
        before = self.etcd.version, self._costs()
        for _ in range(2):
            self._look_periodically()
        if (self.etcd.version, self._costs()) != before:
            self.etcd.fail("a chain at rest is read or written")

    def _look_periodically(self) -> None:
        self.etcd.now += timedelta(seconds=RESYNC_S)
        for operator in self.operators:
            operator.resync()
        self._operate()

    def _check_what_is_left(self) -> None:
        for place in self.namespaces.values():
            jobs, pods = place.objects["jobs"].values(), place.objects["pods"].values()
            if any(is_live(job) or is_deleting(job) for job in jobs) or any(not is_over(pod) for pod in pods):
                self.etcd.fail("a Job or pod is left that runs")
            for chain in place.chains.values():
                conditions = {condition["type"]: condition["status"] for condition in chain.status["conditions"]}
                if (conditions["Ready"], conditions["Stalled"]) != ("True", "False"):
                    self.etcd.fail(f"the conditions of a chain that has succeeded are {conditions}")
                if chain.document["spec"]["template"].get("ttlAfterFinished") and chain.jobs:
                    self.etcd.fail(f"Job {chain.jobs[0]['metadata']['name']} has not expired")
