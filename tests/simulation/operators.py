"""An operator as a real controller on the modelled API server: it moves one request at a time, and may be killed anywhere.

Its watches have places in the list of changes, which may lag behind, go back, or be lost until everything is listed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from datetime import timedelta
from typing import Any, cast

from distillchain_operator.api_server.cluster import ApiError, Cluster
from distillchain_operator.caches.children import Children, Kind, Listed
from distillchain_operator.caches.finished import FinishedChains, has_succeeded
from distillchain_operator.caches.neighbours import Neighbours
from distillchain_operator.chain_key import ChainKey
from distillchain_operator.controller.controller import Controller
from distillchain_operator.metrics.operator_metrics import Metrics
from distillchain_operator.settings import Settings
from simulation.etcd import KINDS, Document, Etcd
from simulation.knowledge import Knowledge
from simulation.namespace import Namespace
from simulation.requests import Faults, ModelledCluster, listed

FIRST_BACKOFF_S, MAX_BACKOFF_S = 0.5, 60.0
ALL_REQUESTS = 10_000
MOST_LOOKS = 30  # at one chain, while nothing else happens


class NoMetrics:
    """Metrics decide nothing, and take longer to build than a whole look."""

    def __getattr__(self, _: str) -> Callable[..., None]:
        return lambda *_args, **_more: None


class _Work:
    """What an operator has to do about one chain, as its queue knows it."""

    def __init__(self) -> None:
        self.is_ready = False
        self.due_at: float | None = None
        self.failures = 0
        self.look: Coroutine[Any, Any, float | None] | None = None


class Operator:
    """One operator, from its start to its end.

    Args:
        watches: names of the namespaces that it works on.
        limit: `maxRunningChains`.
        skew_s: how far its clock is ahead.
        is_slow: it sends one request at a time, hears little, and everything may happen between two requests.
    """

    def __init__(
        self,
        namespaces: dict[str, Namespace],
        etcd: Etcd,
        faults: Faults,
        *,
        image: str,
        watches: Iterable[str],
        limit: int = 0,
        skew_s: int = 0,
        is_slow: bool = False,
    ) -> None:
        self._namespaces = {name: namespaces[name] for name in watches}
        self._etcd, self.is_slow = etcd, is_slow
        self._finished = FinishedChains()
        self._children = Children(self._finished)
        self._knowledge = Knowledge(etcd, self._children, self._finished)
        self._neighbours = Neighbours(limit, is_complete=False, children=self._children)
        self._neighbours.report_to(lambda concerned: self._report(concerned.key, None))
        self.cluster = ModelledCluster(self._namespaces, etcd, faults, take_written=self._take_written)
        self._controller = Controller(
            cast("Cluster", self.cluster),
            Settings(trainer_image=image, progress_s=1e6, namespaces=tuple(self._namespaces), max_running_chains=limit),
            clock=lambda: etcd.now + timedelta(seconds=skew_s),
            monotonic=lambda: etcd.seconds,
            finished=self._finished,
            children=self._children,
            neighbours=self._neighbours,
            metrics=cast("Metrics", NoMetrics()),
        )
        self._work: dict[ChainKey, _Work] = {}
        self._places = {(kind, name): 0 for kind in KINDS for name in self._namespaces}
        self._lists: dict[tuple[Kind, str], Listed] = {}  # those of which the last page is underway
        self._note_chains()
        for name in self._namespaces:
            for kind in Kind:
                self.list_again(kind, name)
            self._list_chains(name)

    def _note_chains(self) -> None:
        """As `note_finished` does at the start."""
        for place in self._namespaces.values():
            for chain in place.chains.values():
                self._neighbours.note_stored(chain.document)
                if has_succeeded(chain.document):
                    self._finished.note(chain.document)
            self._neighbours.note_listed(place.name)

    @property
    def watches(self) -> list[str]:
        return list(self._namespaces)

    @property
    def due_at(self) -> float | None:
        """When it has something to do without a report."""
        return min((work.due_at for work in self._work.values() if work.due_at is not None), default=None)

    def deliver(self, kind: str, name: str, count: int) -> None:
        """The watch of a namespace goes on by some changes of all namespaces."""
        if kind != "chains" and (Kind(kind), name) in self._lists:
            return
        place, changes = self._places[kind, name], self._etcd.changes[kind]
        end = min(place + count, len(changes))
        self._places[kind, name] = end
        for version, namespace, change, document in changes[place:end]:
            if namespace != name:
                continue
            if kind == "chains":
                self._report(ChainKey(name, document["metadata"]["name"]), version)
            else:
                for key in sorted(self._children.apply(Kind(kind), change, document)):
                    self._report(key, None)
        if kind != "chains" and end > place:
            self._knowledge.check(self._namespaces[name])

    def repeat(self, kind: str, name: str, count: int) -> None:
        """A watch that starts again repeats changes."""
        self._places[kind, name] = max(self._places[kind, name] - count, 0)

    def lose(self, kind: str, name: str) -> None:
        """A watch breaks off, and its changes are lost."""
        self._places[kind, name] = len(self._etcd.changes[kind])
        if kind != "chains":
            self._lists.pop((Kind(kind), name), None)
            self._children.follow(Kind(kind), name, is_followed=False)

    def list_again(self, kind: Kind, name: str) -> None:
        """Everything is listed, and watched from then on."""
        self.begin_list(kind, name)
        self.end_list(kind, name)

    def begin_list(self, kind: Kind, name: str) -> None:
        """The first page of a list comes: later pages have the same version. Nothing is watched meanwhile."""
        if (kind, name) not in self._lists:
            self._children.follow(kind, name, is_followed=False)
            self._lists[kind, name] = listed(self._namespaces[name], kind)
            self._places[kind.value, name] = len(self._etcd.changes[kind.value])

    def end_list(self, kind: Kind, name: str) -> None:
        """The last page comes."""
        if (found := self._lists.pop((kind, name), None)) is None:
            return

        async def pages() -> AsyncIterator[Listed]:
            yield found

        relisting = self._children.relist(kind, name, pages())
        try:
            relisting.send(None)
        except StopIteration as done:
            _, changed = done.value
        self._children.follow(kind, name, is_followed=True)
        for key in sorted(changed):
            self._report(key, None)
        self._knowledge.check(self._namespaces[name])

    def _list_chains(self, name: str) -> None:
        """As kopf lists chains when it starts to watch."""
        self._places["chains", name] = len(self._etcd.changes["chains"])
        for chain in self._namespaces[name].chains.values():
            metadata = chain.document["metadata"]
            if not self._finished.is_unchanged(metadata):
                self._report(ChainKey(name, chain.name), int(metadata["resourceVersion"]))

    def resync(self) -> None:
        """The periodic list of chains."""
        chains = [chain for place in self._namespaces.values() for chain in place.chains.values()]
        keys = {ChainKey(chain.namespace.name, chain.name) for chain in chains}
        for chain in chains:
            metadata = chain.document["metadata"]
            if not self._finished.is_unchanged(metadata):
                key = ChainKey(chain.namespace.name, chain.name)
                self._controller.chains.listed(key, int(metadata["resourceVersion"]))
                self._work_of(key).is_ready = True
        self._finished.keep(keys)
        self._controller.prune(keys)
        self._children.prune(keys)
        self._neighbours.check(keys)

    def _take_written(self, job: Document) -> None:
        """The answer to an own write of a Job."""
        if key := self._children.job_written(job):
            self._report(key, None)

    def _work_of(self, key: ChainKey) -> _Work:
        return self._work.setdefault(key, _Work())

    def _report(self, key: ChainKey, version: int | None) -> None:
        if self._controller.chains.report(key, version):
            self._work_of(key).is_ready = True

    def work(self) -> None:
        """Does what is queued."""
        looks: Counter[ChainKey] = Counter()
        while (key := self.move()) is not None:
            looks[key] += 1
            if looks[key] > MOST_LOOKS:
                self._etcd.fail(f"chain {key} was looked at {MOST_LOOKS} times, and nothing else has happened")
            self._etcd.check()

    def move(self, requests: int = ALL_REQUESTS) -> ChainKey | None:
        """Goes on with a look, or begins one if there is a reason, until it has waited for so many requests.

        Returns: at which chain.
        """
        for work in self._work.values():
            if work.due_at is not None and self._etcd.seconds >= work.due_at:
                work.is_ready, work.due_at = True, None
        keys = [key for key, work in self._work.items() if work.is_ready or work.look]
        if not keys:
            return None
        key = self._etcd.rng.choice(keys)
        work = self._work[key]
        if work.look is None:
            work.is_ready = False
            self.cluster.begin_look(key)
            work.look = self._controller.reconcile(key)
        self._go_on(work, work.look, requests)
        return key

    def _go_on(self, work: _Work, look: Coroutine[Any, Any, float | None], requests: int) -> None:
        due_s: float | None = None
        try:
            for _ in range(requests):
                look.send(None)
        except StopIteration as done:
            due_s, work.failures = done.value, 0
        except ApiError:
            work.failures += 1
            due_s = min(FIRST_BACKOFF_S * 2.0 ** (work.failures - 1), MAX_BACKOFF_S)
        except Exception as error:
            self._etcd.fail(f"a look has failed: {type(error).__name__}: {error}")
        else:
            return
        work.look = None
        if due_s is not None:
            due_at = self._etcd.seconds + due_s
            work.due_at = due_at if work.due_at is None else min(due_at, work.due_at)

    def kill(self) -> None:
        """Ends it in the middle of what it does."""
        for work in self._work.values():
            if work.look is not None:
                work.look.close()
