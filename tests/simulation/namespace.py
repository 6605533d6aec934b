"""A namespace of a modelled API server: its chains, Jobs and pods, and the stores of its stages.

Objects are never changed in place: each write stores a new object with the next version.
"""

from __future__ import annotations

from collections import Counter, defaultdict

from chain_builders import a_document, own_store
from distillchain_operator.api_server.cluster import ApiError
from distillchain_operator.status.chain_status import timestamp
from simulation.chain import Chain
from simulation.etcd import Document, Etcd
from simulation.objects import digest_of, is_deleting, is_succeeded, owner_of, uid_of, version_of
from simulation.sharing import check_shared_job

NAMES = ("relay", "sprint", "hurdles")
STAGES = ("mini", "tiny", "femto")
EXPORT: Document = {"export": {"onnx": {}}}
GPU: Document = {"resources": {"limits": {"nvidia.com/gpu": 1}}}  # another Job then makes the export


class Namespace:
    """Chains with their Jobs and pods.

    Args:
        chains: how many there are at first.
        limit: `maxRunningChains` of the operators; 0: none.
        has_one_operator: no other operator ever works on these chains at the same time.
        has_exports: half of the chains are exported, and a stage may find the checkpoint of its teacher damaged.
    Attributes:
        chains: those that exist, by name.
        known: all that there were, by UID.
        stores: digests of the committed stages in the form of the label, by URI.
        crashes: pods of a Job that crashed, by its UID; a fatal one counts as many.
        born: UID and retries of every Job, by its name and the time of its creation.
        home: the chain of every Job, by its UID.
        kept: UIDs of Jobs that an operator could not delete.
    """

    def __init__(
        self, etcd: Etcd, name: str, *, chains: int, limit: int, has_one_operator: bool, has_exports: bool
    ) -> None:
        self.etcd, self.rng, self.name = etcd, etcd.rng, name
        self.limit, self.has_one_operator, self.has_exports = limit, has_one_operator, has_exports
        self.objects: dict[str, dict[str, Document]] = {"chains": {}, "jobs": {}, "pods": {}}
        self.chains: dict[str, Chain] = {}
        self.known: dict[str, Chain] = {}
        self.stores: defaultdict[str, set[str]] = defaultdict(set)
        self.crashes: Counter[str] = Counter()
        self.born: dict[tuple[str, str], tuple[str, int]] = {}
        self.home: dict[str, Chain] = {}
        self.kept: set[str] = set()
        self.is_alone = chains == 1
        for chain in NAMES[:chains]:
            self.create_chain(chain)

    def create_chain(self, name: str) -> None:
        """With evidence or a TTL, or neither. Some of several chains share the store, and so their stages."""
        rng = self.rng
        template: Document = {"retries": rng.randint(0, 2)}
        spec: Document = {"template": template}
        stages = STAGES[: rng.choice([1, 1, 2, 2, 2, 3] if self.is_alone else [1, 1, 2])]
        if rng.random() < 0.4:
            template["ttlAfterFinished"] = "60s"
        if self.has_exports:
            template |= rng.choice([{}, EXPORT, EXPORT | GPU, GPU])
        if self.is_alone and len(stages) > 1 and rng.random() < 0.1:
            spec |= {"evidence": {"controls": ["Direct"], "seeds": 2}, "maxParallelJobs": rng.randint(1, 3)}
        if not self.is_alone and rng.random() < 0.3:
            spec["storage"] = own_store(name)
        # Without an image: the operator's default decides, so that an upgrade may change the names of Jobs.
        document = a_document(name, stages=stages, **spec)
        created = {"creationTimestamp": timestamp(self.etcd.now), "generation": 1}
        document["metadata"] |= {"namespace": self.name, "uid": f"chain-{self.etcd.version}"} | created
        chain = Chain(self, document)
        self.chains[name] = self.known[chain.uid] = chain

    def delete_chain(self, name: str) -> None:
        """The garbage collector deletes its Jobs later."""
        del self.chains[name]
        self.remove("chains", name)

    def put(self, kind: str, document: Document) -> Document:
        """Stores an object as its next version."""
        name = document["metadata"]["name"]
        change = "MODIFIED" if name in self.objects[kind] else "ADDED"
        stored = self.objects[kind][name] = self.etcd.record(kind, self.name, change, document)
        return stored

    def remove(self, kind: str, name: str) -> None:
        self.etcd.record(kind, self.name, "DELETED", self.objects[kind].pop(name))

    def create_job(self, job: Document, *, seen: int) -> Document:
        """Creates a Job for an operator that has listed the Jobs at the version `seen`."""
        name = job["metadata"]["name"]
        if name in self.objects["jobs"]:
            raise ApiError(409, f"jobs {name} already exists", reason="AlreadyExists")
        chain = self.known[owner_of(job)]
        chain.check_new_job(job, seen=seen)
        check_shared_job(chain, job, seen=seen)
        created = {"uid": f"job-{self.etcd.version}", "creationTimestamp": timestamp(self.etcd.now)}
        status = {"startTime": timestamp(self.etcd.now)}
        metadata = job["metadata"] | {"namespace": self.name} | created
        self.born[name, created["creationTimestamp"]] = created["uid"], job["spec"]["backoffLimit"]
        self.home[created["uid"]] = chain
        return self.put("jobs", job | {"metadata": metadata, "status": status, "known_at": self.etcd.version + 1})

    def patch_job(self, name: str, uid: str, *, spec: Document, annotations: Document) -> Document | None:
        job = self.objects["jobs"].get(name)
        if job is None or uid_of(job) != uid:
            return None
        kept = {**job["metadata"].get("annotations", {}), **annotations}
        kept = {key: value for key, value in kept.items() if value is not None}
        changed = job | {"metadata": job["metadata"] | {"annotations": kept}, "spec": job["spec"] | spec}
        return job if changed == job else self.put("jobs", changed)

    def delete_job(self, name: str, uid: str, *, seen: int) -> None:
        """Deletes a Job for an operator that has listed the Jobs and pods at the version `seen`."""
        job = self.objects["jobs"].get(name)
        if job is None or uid_of(job) != uid or is_deleting(job):
            return
        self.home[uid].check_deletion(job, seen=seen)
        self.put("jobs", job | {"metadata": job["metadata"] | {"deletionTimestamp": timestamp(self.etcd.now)}})

    def has_answer(self, job: Document, seen: int) -> bool:
        """Whether a pod of the Job had committed its stage at a version, and the user has not discarded it."""
        after = self.home[uid_of(job)].discarded_at.get(digest_of(job), 0)
        return any(after < version_of(pod) <= seen for pod in self.pods_of(job) if is_succeeded(pod))

    def pods_of(self, job: Document) -> list[Document]:
        uid = uid_of(job)
        return [pod for pod in self.objects["pods"].values() if owner_of(pod) == uid]
