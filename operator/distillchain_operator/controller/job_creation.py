"""Creates the Job of a stage after dry runs, and what belongs to it; says in status why the API server refuses it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from distillchain_api.failures import FailureClass
from distillchain_api.graph import Plan, PlannedStage
from distillchain_api.resource.pod import unknown_fields
from distillchain_api.wire.answer import fit
from distillchain_operator.api_server.cluster import ApiError, Cluster
from distillchain_operator.chain_key import ChainKey
from distillchain_operator.decide.actions import CreateJob, CreatePart
from distillchain_operator.decide.decided import Decided
from distillchain_operator.decide.scheduling import foreign_job
from distillchain_operator.jobs.group import build_network_policy, build_service, without_owner
from distillchain_operator.jobs.parsing import is_controlled_by, parse_job
from distillchain_operator.jobs.stage_job import build_probe_pod
from distillchain_operator.metrics.operator_metrics import Metrics

log = logging.getLogger(__name__)

OWN_JOB_RETRY_S = 1.0  # the Job was not listed a moment ago
NAME_TAKEN_RETRY_S = 5.0  # the garbage collector needs some seconds for the Jobs of a chain that was recreated
REFUSED_RETRY_S = 30.0  # no event says that a quota is free again or a policy was corrected


class Outcome(NamedTuple):
    """What became of an object that was to be created.

    Attributes:
        changes: to the status entry of its stage, which assumes that the object was created; none when it was.
        retry_s: seconds until the chain should be reconciled again without an event.
        is_new: it was refused now, not a moment ago.
    """

    changes: dict[str, Any]
    retry_s: float | None
    is_new: bool = False


CREATED = Outcome({}, None)


class TriedPod(NamedTuple):
    """A dry run of a pod.

    Attributes:
        error: None if the pod would be accepted.
    """

    pod: dict[str, Any]
    error: ApiError | None


class _Refusal(NamedTuple):
    """An outcome that holds until a moment of the monotonic clock."""

    wanted: tuple[str, int, str, str]
    """UID and generation of the chain, kind and name of the object."""
    changes: dict[str, Any]
    until: float


class JobCreator:
    """Creates Jobs and their parts; what was refused is not created again until its backoff has expired."""

    def __init__(
        self,
        cluster: Cluster,
        *,
        pod_template: Mapping[str, Any],
        network_policies: bool,
        monotonic: Callable[[], float],
        metrics: Metrics,
    ) -> None:
        self._cluster = cluster
        self._pod_template = pod_template
        self._network_policies = network_policies
        self._monotonic = monotonic
        self._metrics = metrics
        # Only spares requests: after a restart the operator asks again and decides the same.
        self._refusals: dict[ChainKey, dict[tuple[str, str], _Refusal]] = {}

    def forget(self, key: ChainKey) -> None:
        """The chain was deleted."""
        self._refusals.pop(key, None)

    def backing_off(self, plan: Plan, key: ChainKey) -> frozenset[str]:
        """Names of the Jobs of a chain that were refused and are not tried again yet."""
        known, now = self._refusals.get(key, {}), self._monotonic()
        return frozenset(name for name in self.refused(plan, key) if known["Job", name].until > now)

    def refused(self, plan: Plan, key: ChainKey) -> frozenset[str]:
        """Names of the Jobs of a chain that were refused the last time, also if they may be tried again."""
        chain = plan.chain.metadata.uid, plan.chain.metadata.generation
        known = self._refusals.get(key, {}).items()
        return frozenset(name for (kind, name), refusal in known if kind == "Job" and refusal.wanted[:2] == chain)

    async def try_pods(self, decided: Decided | None, key: ChainKey) -> list[TriedPod]:
        """Dry runs of the pods of all Jobs that `create` may have to create a moment later."""
        if decided is None or decided.plan is None:
            return []
        jobs = [action.job for action in decided.decision.actions if isinstance(action, CreateJob)]
        held = self.backing_off(decided.plan, key)
        return [await self._try_pod(build_probe_pod(job)) for job in jobs if job["metadata"]["name"] not in held]

    async def _try_pod(self, pod: dict[str, Any]) -> TriedPod:
        try:
            await self._cluster.dry_run_pod(pod)
        except ApiError as error:
            return TriedPod(pod, error)
        return TriedPod(pod, None)

    async def create(
        self, action: CreateJob | CreatePart, plan: Plan, key: ChainKey, tried: Sequence[TriedPod] = ()
    ) -> Outcome:
        """Creates the object unless it was refused a moment ago.

        The text of a refusal may differ each time, as with the ports of a webhook's error. Writing it to status is an
        event of the chain, so without the backoff each refusal would cause the next.

        Args:
            tried: pods that need no further dry run.
        """
        manifest = action.job if isinstance(action, CreateJob) else action.manifest
        metadata, kind = plan.chain.metadata, manifest["kind"]
        wanted = (metadata.uid, metadata.generation, kind, manifest["metadata"]["name"])
        # By name: of several Jobs that are refused, none may use up the pause of another.
        place = (kind, manifest["metadata"]["name"])
        refusal = self._refusals.get(key, {}).get(place)
        if refusal is not None and refusal.wanted == wanted and refusal.until > self._monotonic():
            return Outcome(refusal.changes, refusal.until - self._monotonic())
        if isinstance(action, CreateJob):
            outcome = await self._create_job(action, plan, key, tried)
        else:
            outcome = await self._create_part(action, key)
        # An outcome without changes is not kept: the object exists, and the next reconcile sees it.
        if outcome.changes and outcome.retry_s:
            until = self._monotonic() + outcome.retry_s
            known = self._refusals.get(key, {})
            kept = {other: refusal for other, refusal in known.items() if refusal.wanted[:2] == wanted[:2]}
            self._refusals[key] = kept | {place: _Refusal(wanted, outcome.changes, until)}
            return outcome._replace(is_new=True)
        self._refusals.get(key, {}).pop(place, None)
        return outcome

    async def _create_job(self, action: CreateJob, plan: Plan, key: ChainKey, tried: Sequence[TriedPod]) -> Outcome:
        name = action.job["metadata"]["name"]
        what = "a dry run of the stage's pod"
        try:
            # The Job alone would be accepted with a pod that its controller can never create.
            pod = build_probe_pod(action.job)
            known = next((found for found in tried if found.pod == pod), None)
            if (error := (known or await self._try_pod(pod)).error) is not None:
                raise error
            # Without its Service, a group would hold GPUs and wait.
            for part in self._parts_of(action.job, key):
                what = f"a dry run of {part['kind']} {part['metadata']['name']}"
                await self._try_part(part)
            what = f"Job {name}"
            await self._cluster.create_job(action.job)
        except ApiError as error:
            # No answer: the Job may exist or not. The queue retries, and its name, which never changes, prevents a
            # second one.
            if not error.status:
                raise
            if error.status == 409:
                return await self._name_taken(action, plan, key, error)
            return self._refused(action, plan, key, error, what=what)
        self._metrics.job_created()
        log.info("job created", extra={"chain": str(key), "stage": action.stage, "job": name})
        return CREATED

    def _parts_of(self, job: dict[str, Any], key: ChainKey) -> list[dict[str, Any]]:
        """What a Job on several nodes needs beside it."""
        group = parse_job(job)
        if not group.is_open_group:
            return []
        builders = [build_service, *([build_network_policy] if self._network_policies else [])]
        return [build(group, namespace=key.namespace, chain=key.name) for build in builders]

    async def _try_part(self, manifest: dict[str, Any]) -> None:
        try:
            await self._cluster.create_part(without_owner(manifest), dry_run=True)
        except ApiError as error:
            # That of an earlier Job of this name, which the garbage collector deletes; or one of another owner, which
            # the message about the real one names.
            if error.reason != "AlreadyExists":
                raise

    async def _create_part(self, action: CreatePart, key: ChainKey) -> Outcome:
        kind, name = action.manifest["kind"], action.manifest["metadata"]["name"]
        fields = {"chain": str(key), "stage": action.stage, "kind": kind, "object": name}
        try:
            await self._cluster.create_part(action.manifest)
        except ApiError as error:
            if not error.status:
                raise
            log.warning("part of a group not accepted", extra={**fields, "error": error.message})
            if error.status == 409:
                remedy = f"if it does not go away: kubectl delete {kind.lower()} {name}"
                message = f"the pods cannot find each other yet: {kind} {name} belongs to another owner; {remedy}"
                return Outcome({"message": fit(message)}, NAME_TAKEN_RETRY_S)
            reason = f"the pods cannot find each other: the API server refused {kind} {name}: {error.message}"
            changes: dict[str, Any] = {"message": fit(f"{reason}; retrying every {REFUSED_RETRY_S:.0f} s")}
            if error.is_refusal and not error.is_quota:
                changes["failure_class"] = FailureClass.POD_REJECTED
            return Outcome(changes, REFUSED_RETRY_S)
        log.info("part of a group created", extra=fields)
        return CREATED

    def _refused(self, action: CreateJob, plan: Plan, key: ChainKey, error: ApiError, *, what: str) -> Outcome:
        # A 403 as well, but the user has nothing to correct.
        if error.is_namespace_terminating:
            return Outcome(_waits("the namespace is being deleted"), REFUSED_RETRY_S)
        fields = {"chain": str(key), "stage": action.stage, "error": error.message}
        reason = f"the API server refused {what}: {error.message}; retrying every {REFUSED_RETRY_S:.0f} s"
        # A quota may be free again, and 429 or 5xx pass, without the user: the stage waits and has not failed.
        if error.is_quota or not error.is_refusal:
            log.warning("job not accepted yet", extra=fields)
            return Outcome(_waits(reason), REFUSED_RETRY_S)
        self._metrics.job_refused()
        log.warning("job refused", extra=fields)
        if error.has_unknown_field and (stage := plan.stage(action.stage)):
            reason = "; ".join([*self._unknown_fields(stage), reason])
        changes = {
            "phase": "Failed",
            "job": None,
            "message": fit(reason),
            "failure_class": FailureClass.POD_REJECTED,
        }
        return Outcome(changes, REFUSED_RETRY_S)

    def _unknown_fields(self, stage: PlannedStage) -> list[str]:
        """The misspelt fields with the names that were meant, which the API server does not say."""
        operators = unknown_fields(self._pod_template, field="DISTILLCHAIN_POD_TEMPLATE")
        users = unknown_fields(stage.pod, field=stage.pod_field)
        return [
            *(f"DISTILLCHAIN_POD_TEMPLATE.{fault}" for fault in operators),
            *(f"{stage.pod_field}.{fault}" for fault in users),
        ]

    async def _name_taken(self, action: CreateJob, plan: Plan, key: ChainKey, error: ApiError) -> Outcome:
        """The conflict is an earlier Job of this chain, a Job of another owner, or two writers of one quota."""
        name = action.job["metadata"]["name"]
        job = await self._cluster.get_job(key.namespace, name)
        if job is None:
            return Outcome(_waits(f"{error.message}; retrying"), NAME_TAKEN_RETRY_S)
        if is_controlled_by(job, plan.chain.metadata.uid):
            return await self._own_job(job, action, key)
        is_ownerless = not parse_job(job).owner_uid
        changes = _waits(f"waiting for {foreign_job(name, key.name, is_ownerless=is_ownerless)}")
        if is_ownerless:
            changes["failure_class"] = FailureClass.POD_REJECTED
        return Outcome(changes, NAME_TAKEN_RETRY_S)

    async def _own_job(self, job: dict[str, Any], action: CreateJob, key: ChainKey) -> Outcome:
        """A Job of this chain that was not listed: it is new, or somebody removed its labels, which are restored."""
        metadata, labels = job["metadata"], action.job["metadata"]["labels"]
        found = metadata.get("labels") or {}
        if all(found.get(name) == value for name, value in labels.items()):
            return Outcome({}, OWN_JOB_RETRY_S)
        name = metadata["name"]
        try:
            await self._cluster.label_job(key.namespace, name, uid=metadata["uid"], labels=labels)
        except ApiError as error:
            if not error.status:
                raise
            remedy = f"to run the stage again: kubectl delete job {name}"
            message = f"Job {name} has lost its labels, and the API server refused to restore them: {error.message}"
            return Outcome(_waits(f"{message}; {remedy}"), REFUSED_RETRY_S)
        log.warning("labels of a job restored", extra={"chain": str(key), "stage": action.stage, "job": name})
        return Outcome({}, OWN_JOB_RETRY_S)


def _waits(message: str) -> dict[str, Any]:
    """How the entry of a stage whose Job cannot be created yet differs from a started one."""
    return {"phase": "Pending", "job": None, "message": fit(message)}
