"""What users do to the chains and Jobs of one namespace."""

from __future__ import annotations

from typing import Any

from distillchain_api.failures import FailureClass
from distillchain_api.retry_request import new_retry
from distillchain_operator.jobs.labels import digest_label
from distillchain_operator.status.chain_status import timestamp
from simulation.chain import Chain
from simulation.etcd import Document
from simulation.namespace import EXPORT, NAMES, Namespace
from simulation.objects import digest_of, is_finished, is_over

DAMAGED = FailureClass.CHECKPOINT_CORRUPT


def _phase_of_export(entry: Document) -> str:
    return str(entry.get("missingExport", {}).get("phase", ""))


class Users:
    """Everybody who may write in a namespace."""

    def __init__(self, namespace: Namespace) -> None:
        self.namespace, self.etcd, self.rng = namespace, namespace.etcd, namespace.rng

    def _a_chain(self) -> Chain | None:
        chains = list(self.namespace.chains.values())
        return self.rng.choice(chains) if chains else None

    def edit(self, chain: Chain | None = None) -> None:
        """Suspends or resumes a chain, or asks for another image or another training."""
        if (chain := chain or self._a_chain()) is None:
            return
        spec = chain.document["spec"]
        edits: list[dict[str, Any]] = [
            {"suspend": not spec.get("suspend", False)},
            {"suspend": not spec.get("suspend", False)},
            {"template": {**spec["template"], "image": f"trainer:{self.rng.randint(3, 5)}"}},
            {"template": {**spec["template"], "training": {"epochs": self.rng.randint(1, 3)}}},
        ]
        if self.namespace.has_exports:
            rest = {name: value for name, value in spec["template"].items() if name != "export"}
            edits.append({"template": rest if "export" in spec["template"] else rest | EXPORT})
        chain.edit(self.rng.choice(edits))

    def suspend_or_resume(self) -> None:
        """Suspends a chain, or lets it go on."""
        if (chain := self._a_chain()) is not None:
            chain.edit({"suspend": not chain.document["spec"].get("suspend", False)})

    def replace_chain(self) -> None:
        """Deletes a chain and creates another one of the same name; the garbage collector comes later."""
        if (chain := self._a_chain()) is not None:
            self.namespace.delete_chain(chain.name)
            self.namespace.create_chain(chain.name)

    def delete_or_create_chain(self) -> None:
        """Deletes one of several chains, or creates one that is not there."""
        missing = [name for name in NAMES if name not in self.namespace.chains]
        if len(self.namespace.chains) > 1 and self.rng.random() < 0.6:
            self.namespace.delete_chain(self.rng.choice(list(self.namespace.chains)))
        elif missing and not self.namespace.is_alone:
            self.namespace.create_chain(missing[0])

    def delete_a_job(self) -> None:
        """As somebody who frees a GPU: its pods are deleted first, or only after it."""
        for job in self.namespace.objects["jobs"].values():
            name = job["metadata"]["name"]
            if not self.namespace.has_answer(job, self.etcd.version):
                if self.rng.random() < 0.5:
                    self.namespace.remove("jobs", name)
                else:
                    at = {"deletionTimestamp": timestamp(self.etcd.now)}
                    self.namespace.put("jobs", job | {"metadata": job["metadata"] | at})
                return

    def clean_up(self) -> None:
        """Deletes the Jobs that have ended and whose result is in status, as a CronJob does."""
        for job in list(self.namespace.objects["jobs"].values()):
            chain = self.namespace.home[job["metadata"]["uid"]]
            if is_finished(job) and digest_of(job) in chain.committed_at:
                self.namespace.remove("jobs", job["metadata"]["name"])

    def retry(self) -> None:
        """As `distillchain retry` does for each chain that has failed."""
        for chain in self.namespace.chains.values():
            entries: tuple[Document, ...] = (*chain.status.get("stages", []), *chain.status.get("evidence", []))
            failed = [entry["name"] for entry in entries if "Failed" in (entry["phase"], _phase_of_export(entry))]
            if failed and not chain.open_request.stages:
                damaged = [entry["digest"] for entry in entries if entry.get("failureClass") == DAMAGED]
                for digest in map(digest_label, damaged):
                    chain.forget_commits(chain.stages[digest][1])
                chain.annotate(new_retry(failed, token=str(self.etcd.version)))

    def train_again(self) -> None:
        """As `distillchain retry --from STAGE --discard` does, which waits until no pod of the stages runs.

        Other chains that have the stages are retried too: what they say of them is no longer true.
        """
        if (chain := self._a_chain()) is None:
            return
        stages = chain.plan.vertices[self.rng.randrange(len(chain.plan.stages)) :]
        digests = {digest_label(stage.digest) for stage in stages}
        again = {}
        for other in self.namespace.chains.values():
            if other.store is chain.store:
                own = [digest_label(stage.digest) for stage in other.plan.vertices]
                first = next((place for place, digest in enumerate(own) if digest in digests), len(own))
                digests |= set(own[first:])
                again[other.name] = [stage.name for stage in other.plan.vertices[first:]]
        pods = self.namespace.objects["pods"].values()
        affected = [self.namespace.chains[name] for name, names in again.items() if names]
        is_running = any(digest_of(pod) in digests and not is_over(pod) for pod in pods)
        if is_running or any(other.open_request.stages for other in affected):
            return
        for other in affected:
            other.discard(digests)
        for other in affected:
            token = str(self.etcd.version)
            other.annotate(new_retry(again[other.name], token=token, committed_too=True))

    def lose_a_pod(self) -> None:
        """The pod of a Job that has ended is deleted, as with its node; before, the Job controller keeps it."""
        for job in self.namespace.objects["jobs"].values():
            pods = self.namespace.pods_of(job)
            if is_finished(job) and pods and self.rng.random() < 0.7:
                self.namespace.remove("pods", pods[0]["metadata"]["name"])
                return
