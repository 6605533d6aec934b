"""What chains of one namespace must not do to each other: run beyond the limit, or train a stage that another trains.

This holds for one operator. Two that are active at the same time do not know what the other one is about to do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from simulation.etcd import Document
from simulation.objects import (
    digest_of,
    is_deleting,
    is_export,
    is_live,
    is_running,
    is_succeeded,
    is_suspended,
    order_of,
    owner_of,
    uid_of,
)

if TYPE_CHECKING:
    from simulation.chain import Chain
    from simulation.namespace import Namespace


def _counts(chain: Chain, job_uid: str) -> bool:
    """Whether a Job holds the place and the stage of its chain: neither one that is gone nor one that is stalled does."""
    return chain.exists and job_uid not in chain.stalled


def check_shared_job(chain: Chain, job: Document, *, seen: int) -> None:
    """An operator that has listed the Jobs at the version `seen` creates a Job of a chain."""
    place, digest, name = chain.namespace, digest_of(job), job["metadata"]["name"]
    if not place.has_one_operator or not chain.exists or is_export(job):
        return
    holders = set()
    for other in place.objects["jobs"].values():
        home = place.home[uid_of(other)]
        if home is chain or is_export(other) or other["known_at"] > seen or not _counts(home, uid_of(other)):
            continue
        if not is_live(other) or is_suspended(other) or any(map(is_succeeded, place.pods_of(other))):
            continue
        holders.add(home.name)
        if home.store is chain.store and digest_of(other) == digest and digest not in chain.store:
            place.etcd.fail(
                f"Job {name} was created, and {other['metadata']['name']} of {home.name} has the same stage"
            )
    if 0 < place.limit <= len(holders) and not any(map(is_live, chain.jobs)):
        place.etcd.fail(f"Job {name} was created, and {place.limit} other chains run: {sorted(holders)}")


def check_start(place: Namespace, pod: Document) -> None:
    """The kubelet starts a pod."""
    name, digest = pod["metadata"]["name"], digest_of(pod)
    chain = place.home[owner_of(pod)]
    if not place.has_one_operator or order_of(pod).get("exportOnly"):
        return
    pods = place.objects["pods"].values()
    running = [other for other in pods if is_running(other) and not order_of(other).get("exportOnly")]
    holders = {chain.name} if _counts(chain, owner_of(pod)) else set()
    for other in running:
        home = place.home[owner_of(other)]
        if home.name == chain.name:
            is_beside = digest_of(other) == digest
        else:
            counts = _counts(home, owner_of(other))
            holders |= {home.name} if counts else set()
            # A trainer that stops keeps the place of its chain, but not always the stage.
            is_same = home.store is chain.store and digest_of(other) == digest
            is_beside = counts and is_same and not is_deleting(other)
        if is_beside and digest not in chain.store:
            place.etcd.fail(f"pod {name} trains beside {other['metadata']['name']}")
    if chain.name in holders and place.limit and len(holders) > place.limit:
        place.etcd.fail(f"pod {name} starts, and more than {place.limit} chains run: {sorted(holders)}")
