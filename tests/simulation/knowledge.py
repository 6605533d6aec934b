"""What an operator knows of Jobs and pods may lag behind, and never gets older."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

from distillchain_operator.caches.children import Children
from distillchain_operator.caches.finished import FinishedChains
from distillchain_operator.chain_key import ChainKey
from distillchain_operator.jobs.observed import ObservedJob, ObservedPod
from distillchain_operator.jobs.parsing import parse_job, parse_pod
from simulation.etcd import Document, Etcd
from simulation.namespace import Namespace

Child = ObservedJob | ObservedPod


class Knowledge:
    """Which of the states of each Job and pod the caches of an operator have."""

    def __init__(self, etcd: Etcd, children: Children, finished: FinishedChains) -> None:
        self._etcd, self._children, self._finished = etcd, children, finished
        # By UID of the chain and of the object: the place of the state in `Etcd.states`, and the state.
        self._known: defaultdict[str, dict[str, tuple[int, Child | None]]] = defaultdict(dict)

    def check(self, place: Namespace) -> None:
        """Raises: Broken if the operator takes an object for what it was before, or for one that still exists."""
        for chain in place.chains.values():
            key = ChainKey(place.name, chain.name)
            if key in self._finished:  # nothing is kept of it, not even what is gone
                self._known.pop(chain.uid, None)
                continue
            observed = self._children.observed(key, chain.uid)
            if observed is None:
                continue
            known = self._known[chain.uid]
            here = {child.uid: child for child in (*observed.jobs, *observed.pods)}
            for uid in known.keys() - here.keys():
                known[uid] = len(self._etcd.states[uid]), None
            for uid, child in here.items():
                before, last = known.get(uid, (0, None))
                if child is not last:
                    known[uid] = self._place_of(child, before), child

    def _place_of(self, child: Child, first: int) -> int:
        states = self._etcd.states[child.uid]
        parse: Callable[[Document], Child] = parse_job if isinstance(child, ObservedJob) else parse_pod
        place = next((place for place in range(first, len(states)) if parse(states[place]) == child), None)
        if place is None:
            self._etcd.fail(f"an operator takes {child.name} for what it was before")
        return place
