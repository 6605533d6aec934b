"""One random history: operators, Job controller, kubelet and users act in any order, then everything goes well."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from distillchain_operator.children import Kind
from simulation.etcd import KINDS, Broken, Etcd
from simulation.kubernetes import Kubernetes
from simulation.namespace import Namespace, digest_of, is_deleting, is_live, is_over, is_succeeded, owner_of
from simulation.operators import MAX_BACKOFF_S, Faults, Operator

IMAGES = ("trainer:1", "trainer:2")
STEPS = 80
MOST_ROUNDS = 150
MOST_STATUS_WRITES = 100
MOST_REQUESTS = 400
MOST_RETRIES = 4
RESYNC_S = 300.0
REQUESTS = ("status", "create", "dry run", "delete", "suspend", "annotate", "ttl", "event")
REFUSALS = (403, 422, 429, 500)
# For each operator the namespaces that it watches. Several namespaces cost more time, so they are rarer.
LAYOUTS: list[list[list[str]]] = [
    *[[["ml"]]] * 4,
    *[[["ml"], ["ml"]]] * 2,
    [["ml"], ["lab"]],
    [["ml", "lab"], ["lab"]],
]


class History:
    """What happens for a seed to one chain, or to the chains of two namespaces."""

    def __init__(self, seed: int) -> None:
        self.rng = rng = random.Random(seed)
        self.etcd, self.faults = Etcd(rng), Faults()
        self.layout = rng.choice(LAYOUTS)
        names = sorted({name for watched in self.layout for name in watched})
        counts = {name: sum(name in watched for watched in self.layout) for name in names}
        self.namespaces = {name: Namespace(self.etcd, name, has_one_operator=counts[name] == 1) for name in names}
        self.clusters = {name: Kubernetes(place) for name, place in self.namespaces.items()}
        self.same_image = rng.random() < 0.5
        self.operators = [self._start(number) for number in range(len(self.layout))]

    def _start(self, number: int) -> Operator:
        image = IMAGES[0] if self.same_image else self.rng.choice(IMAGES)
        return Operator(self.namespaces, self.etcd, self.faults, image=image, watches=self.layout[number])

    def run(self) -> None:
        """Raises: Broken."""
        for _ in range(STEPS):
            self._disturb()
            self._check()
        self._let_it_end()

    def _check(self) -> None:
        if self.etcd.fault:
            raise self.etcd.fault

    def _disturb(self) -> None:
        rng, faults = self.rng, self.faults
        self.etcd.now += timedelta(seconds=rng.choice([0, 0, 1, 5, 40, 100]))
        operator = rng.choice(self.operators)
        watch = rng.choice(KINDS), rng.choice(operator.watches)
        cluster = self.clusters[rng.choice(list(self.clusters))]
        steps: list[tuple[int, Callable[[], Any]]] = [
            (14, lambda: operator.move(rng.choice([1, 2, 4, 99, 99]))),
            (14, lambda: operator.deliver(*watch, rng.choice([1, 3, 99]))),
            (12, lambda: self._work(operator)),
            (12, lambda: cluster.act_on_jobs(well=False)),
            (12, lambda: cluster.act_on_pods(well=rng.random() < 0.3)),
            (1, lambda: operator.repeat(*watch, rng.randint(1, 5))),
            (1, lambda: operator.lose(*watch)),
            (4, lambda: operator.list_again(rng.choice(list(Kind)), watch[1])),
            (1, operator.resync),
            (2, self._restart_an_operator),
            (1, cluster.evict_a_pod),
            (1, cluster.lose_a_pod),
            (1, cluster.delete_a_job),
            (1, cluster.retry),
            (1, lambda: self._edit(cluster.namespace)),
            (1, lambda: faults.refused.update({rng.choice(REQUESTS): rng.choice(REFUSALS)})),
            (2, faults.refused.clear),
            (1, lambda: setattr(faults, "lost", rng.choice([0.0, 0.0, 0.2]))),
        ]
        # Rare: a chain of which everything is discarded gets nowhere.
        steps += [(1, rng.choice([cluster.train_again, cluster.namespace.replace_chain, lambda: None, lambda: None]))]
        weights = [weight for weight, _ in steps]
        rng.choices([step for _, step in steps], weights)[0]()

    def _work(self, operator: Operator) -> None:
        """Some watches are up to date, and what is queued is done."""
        for name in operator.watches:
            for kind in KINDS:
                if self.rng.random() < 0.7:
                    operator.deliver(kind, name, len(self.etcd.changes[kind]))
        while operator.move():
            self._check()

    def _restart_an_operator(self) -> None:
        """As an upgrade does it, perhaps with another default image."""
        number = self.rng.randrange(len(self.operators))
        self.operators[number].kill()
        self.operators[number] = self._start(number)

    def _edit(self, namespace: Namespace) -> None:
        spec = namespace.chain["spec"]
        edits: list[dict[str, Any]] = [
            {"suspend": not spec.get("suspend", False)},
            {"suspend": not spec.get("suspend", False)},
            {"template": {**spec["template"], "image": f"trainer:{self.rng.randint(3, 5)}"}},
            {"template": {**spec["template"], "training": {"epochs": self.rng.randint(1, 3)}}},
        ]
        namespace.edit(self.rng.choice(edits))

    def _let_it_end(self) -> None:
        """Without further disturbance, every chain must succeed soon, and then nothing may happen any more."""
        self.faults.refused.clear()
        self.faults.lost = 0.0
        before = self._costs()
        if self.rng.random() < 0.2:
            self._lose_an_edit()
        # The last time that what was lost is found: from now on, no periodic list may be needed.
        for operator in self.operators:
            for name in operator.watches:
                for kind in Kind:
                    operator.list_again(kind, name)
            operator.resync()
        self._agree()
        if self.rng.random() < 0.15:
            self._rest_suspended()
        for place in self.namespaces.values():
            if place.chain["spec"].get("suspend"):
                place.edit({"suspend": False})
        self._settle()
        for _ in range(MOST_RETRIES):
            open_ones = [cluster for name, cluster in self.clusters.items() if not self._has_ended(name)]
            if not open_ones:
                break
            self._check_rest()
            for cluster in open_ones:
                cluster.retry()
            self._settle()
        for name, place in self.namespaces.items():
            if not self._has_ended(name):
                self.etcd.fail(f"nothing happens any more, and the chain is {place.phase}: {place.status}")
        writes, requests = (now - then for now, then in zip(self._costs(), before, strict=True))
        if writes > MOST_STATUS_WRITES * len(self.namespaces) or requests > MOST_REQUESTS * len(self.namespaces):
            self.etcd.fail(f"{writes} status writes and {requests} requests until the end")
        self._check_rest()
        self._check_what_is_left()

    def _lose_an_edit(self) -> None:
        """No watch reports the last edit of a chain."""
        for cluster in self.clusters.values():
            self._round()
            self._edit(cluster.namespace)
        for operator in self.operators:
            for name in operator.watches:
                operator.lose("chains", name)

    def _agree(self) -> None:
        """Operators that see everything keep one Job of each stage."""
        for _ in range(2):
            self._operate()
            self.etcd.now += timedelta(seconds=MAX_BACKOFF_S)
        for place in self.namespaces.values():
            live = [job for job in place.objects["jobs"].values() if is_live(job)]
            # The Job controller completes a Job that has answered.
            open_ones = [job for job in live if not any(map(is_succeeded, place.pods_of(job)))]
            stages = Counter((owner_of(job), digest_of(job)) for job in open_ones)
            if twice := [digest for (_, digest), count in stages.items() if count > 1]:
                self.etcd.fail(f"two Jobs of stage {twice[0]} are kept")

    def _costs(self) -> tuple[int, int]:
        writes = sum(place.status_writes for place in self.namespaces.values())
        return writes, sum(operator.cluster.requests for operator in self.operators)

    def _has_ended(self, name: str) -> bool:
        place = self.namespaces[name]
        entries = place.status.get("evidence", [])
        return place.phase == "Succeeded" and all(entry["phase"] == "Committed" for entry in entries)

    def _rest_suspended(self) -> None:
        """A chain that is suspended trains nothing."""
        for place in self.namespaces.values():
            place.edit({"suspend": True})
        self._agree()
        for place in self.namespaces.values():
            own = [job for job in place.objects["jobs"].values() if owner_of(job) == place.chain["metadata"]["uid"]]
            for job in own:
                if is_live(job) and not job["spec"].get("suspend") and not any(map(is_succeeded, place.pods_of(job))):
                    self.etcd.fail(f"Job {job['metadata']['name']} of a suspended chain is not suspended")
        self._settle()
        self._check_rest()
        for place in self.namespaces.values():
            if any(not is_over(pod) for pod in place.objects["pods"].values()):
                self.etcd.fail("a suspended chain trains")
            if place.phase not in ("Suspended", "Succeeded", "Failed"):
                self.etcd.fail(f"a suspended chain is {place.phase}")

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
        states = {name: place.status for name, place in self.namespaces.items()}
        self.etcd.fail(f"no end after {MOST_ROUNDS} rounds: {states}")

    def _operate(self) -> None:
        """Every operator is up to date and does what it can."""
        for operator in self.operators:
            for kind in KINDS:
                for name in operator.watches:
                    operator.deliver(kind, name, len(self.etcd.changes[kind]))
            while operator.move():
                self._check()

    def _round(self) -> None:
        self._operate()
        for cluster in self.clusters.values():
            cluster.act_on_jobs(well=True)
            cluster.act_on_pods(well=True)
        self._check()
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
            while operator.move():
                self._check()

    def _check_what_is_left(self) -> None:
        for place in self.namespaces.values():
            jobs, pods = place.objects["jobs"].values(), place.objects["pods"].values()
            if any(is_live(job) or is_deleting(job) for job in jobs) or any(not is_over(pod) for pod in pods):
                self.etcd.fail("a Job or pod is left that runs")
            ready = [(c["type"], c["status"]) for c in place.status["conditions"] if c["type"] in ("Ready", "Stalled")]
            if sorted(ready) != [("Ready", "True"), ("Stalled", "False")]:
                self.etcd.fail(f"the conditions of a chain that has succeeded are {ready}")
            if place.chain["spec"]["template"].get("ttlAfterFinished") and jobs:
                self.etcd.fail(f"Job {next(iter(jobs))['metadata']['name']} has not expired")


def run(seed: int) -> Broken | None:
    """What a history has broken; None if it was nothing."""
    try:
        History(seed).run()
    except Broken as broken:
        return broken
    return None
