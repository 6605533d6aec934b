"""One random history: operators, Job controller, kubelet and users act in any order, then everything goes well."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from distillchain_operator.caches.children import Kind
from simulation.ending import Ending
from simulation.etcd import KINDS, Broken, Etcd
from simulation.kubernetes import Kubernetes
from simulation.namespace import Namespace
from simulation.operators import Operator
from simulation.requests import Faults
from simulation.users import Users

IMAGES = ("trainer:1", "trainer:2")
STEPS = 80
REQUESTS = ("status", "status", "create", "dry run", "delete", "suspend", "resume", "annotate", "ttl", "event")
REFUSALS = (403, 422, 429, 500)
# For each operator the namespaces that it watches, and how many chains each has. More cost more time, so they are rarer.
LAYOUTS: list[tuple[list[list[str]], int]] = [
    *[([["ml"]], 1)] * 3,
    *[([["ml"]], 2)] * 2,
    ([["ml"]], 3),
    *[([["ml"], ["ml"]], 1)] * 3,
    ([["ml"], ["ml"]], 2),
    ([["ml"], ["lab"]], 1),
    ([["ml", "lab"], ["lab"]], 1),
]


class History:
    """What happens for a seed to the chains of one or two namespaces."""

    def __init__(self, seed: int, *, has_exports: bool = False) -> None:
        self.has_exports = has_exports
        self.rng = rng = random.Random(seed)
        self.etcd, self.faults = Etcd(rng), Faults()
        self.layout, self.chains = rng.choice(LAYOUTS)
        self.limit = rng.choice([0, 1, 1, 2]) if self.chains > 1 else 0
        names = sorted({name for watched in self.layout for name in watched})
        self.namespaces = {name: self._namespace(name, self.chains) for name in names}
        self.clusters = {name: Kubernetes(place) for name, place in self.namespaces.items()}
        self.users = {name: Users(place) for name, place in self.namespaces.items()}
        self.same_image = rng.random() < (0.5 if len(self.layout) == 1 else 0.3)
        self.operators = [self._start(number) for number in range(len(self.layout))]

    def _namespace(self, name: str, chains: int) -> Namespace:
        is_only = sum(name in watched for watched in self.layout) == 1
        return Namespace(
            self.etcd,
            name,
            chains=chains,
            limit=self.limit,
            has_one_operator=is_only,
            has_exports=self.has_exports,
        )

    def _start(self, number: int) -> Operator:
        return Operator(
            self.namespaces,
            self.etcd,
            self.faults,
            image=IMAGES[0] if self.same_image else self.rng.choice(IMAGES),
            watches=self.layout[number],
            limit=self.limit,
            skew_s=self.rng.choice([0, 0, -20, 20]),
            is_slow=len(self.layout) > 1 and self.rng.random() < 0.5,
        )

    def run(self) -> None:
        """Raises: Broken."""
        for _ in range(STEPS):
            self._disturb()
            self.etcd.check()
        Ending(self).run()

    def _disturb(self) -> None:
        rng, faults = self.rng, self.faults
        self.etcd.now += timedelta(seconds=rng.choice([0, 0, 1, 5, 40, 100]))
        operator = rng.choice(self.operators)
        name = rng.choice(operator.watches)
        watch = rng.choice(KINDS), name
        kind = rng.choice(list(Kind))
        cluster = self.clusters[rng.choice(list(self.clusters))]
        users = self.users[cluster.namespace.name]
        steps: list[tuple[int, Callable[[], Any]]] = [
            (14, lambda: operator.move(1 if operator.is_slow else rng.choice([1, 2, 4, 99, 99]))),
            (3 if operator.is_slow else 14, lambda: operator.deliver(*watch, rng.choice([1, 3, 99]))),
            (12, lambda: self._work(operator)),
            (12, lambda: cluster.act_on_jobs(well=False)),
            (12, lambda: cluster.act_on_pods(well=rng.random() < 0.3)),
            (1, lambda: operator.repeat(*watch, rng.randint(1, 5))),
            (1, lambda: operator.lose(*watch)),
            (3, lambda: operator.begin_list(kind, name)),
            (4, lambda: operator.end_list(kind, name)),
            (2, lambda: operator.list_again(kind, name)),
            (1, operator.resync),
            (2, self._restart_an_operator),
            (1, cluster.evict_a_pod),
            (1, users.lose_a_pod),
            (1, users.delete_a_job),
            (3, users.clean_up),
            (1, users.retry),
            (1, users.edit),
            (0 if self.chains == 1 else 2, users.suspend_or_resume),
            (2, lambda: faults.refused.update({rng.choice(REQUESTS): rng.choice(REFUSALS)})),
            (3, faults.refused.clear),
            (1, lambda: setattr(faults, "lost", rng.choice([0.0, 0.0, 0.2]))),
        ]
        # Rare: a chain of which everything is discarded gets nowhere.
        rare = [users.train_again, users.replace_chain, users.delete_or_create_chain, lambda: None]
        steps += [(1, rng.choice(rare))]
        weights = [weight for weight, _ in steps]
        rng.choices([step for _, step in steps], weights)[0]()

    def _work(self, operator: Operator) -> None:
        """Some watches are up to date, and what is queued is done."""
        if operator.is_slow:
            operator.move(1)
            return
        for name in operator.watches:
            for kind in KINDS:
                if self.rng.random() < 0.7:
                    operator.deliver(kind, name, len(self.etcd.changes[kind]))
        operator.work()

    def _restart_an_operator(self) -> None:
        """As an upgrade does it, perhaps with another default image."""
        number = self.rng.randrange(len(self.operators))
        self.operators[number].kill()
        self.operators[number] = self._start(number)


def run(seed: int, *, has_exports: bool = False) -> Broken | None:
    """What a history has broken; None if it was nothing."""
    try:
        History(seed, has_exports=has_exports).run()
    except Broken as broken:
        return broken
    return None
