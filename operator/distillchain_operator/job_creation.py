"""Creates the Job of a stage after dry runs; says in status why the API server does not accept it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from distillchain_api.failures import FailureClass
from distillchain_api.graph import Plan, PlannedStage
from distillchain_api.resource.pod import unknown_fields
from distillchain_api.wire.answer import fit
from distillchain_operator.actions import CreateJob
from distillchain_operator.chain_key import ChainKey
from distillchain_operator.cluster import ApiError, Cluster
from distillchain_operator.entries import foreign_job
from distillchain_operator.jobs import build_probe_pod
from distillchain_operator.metrics import Metrics
from distillchain_operator.observed import is_controlled_by

log = logging.getLogger(__name__)

OWN_JOB_RETRY_S = 1.0  # the Job was not listed a moment ago
NAME_TAKEN_RETRY_S = 5.0  # the garbage collector needs some seconds for the Jobs of a chain that was recreated
REFUSED_RETRY_S = 30.0  # no event says that a quota is free again or a policy was corrected


class Outcome(NamedTuple):
    """What became of a Job that was to be created.

    Attributes:
        changes: to the status entry of a stage whose Job was created; none when it was.
        retry_s: seconds until the chain should be reconciled again without an event.
    """

    changes: dict[str, Any]
    retry_s: float | None


CREATED = Outcome({}, None)


class _Refusal(NamedTuple):
    """An outcome that holds until a moment of the monotonic clock."""

    job: tuple[str, int, str]
    """UID and generation of the chain, name of the Job."""
    changes: dict[str, Any]
    until: float


class JobCreator:
    """Creates Jobs; a Job that was refused is not created again until its backoff has expired."""

    def __init__(
        self,
        cluster: Cluster,
        *,
        pod_template: Mapping[str, Any],
        monotonic: Callable[[], float],
        metrics: Metrics,
    ) -> None:
        self._cluster = cluster
        self._pod_template = pod_template
        self._monotonic = monotonic
        self._metrics = metrics
        # Only spares requests: after a restart the operator asks again and decides the same.
        self._refusals: dict[ChainKey, _Refusal] = {}

    def forget(self, key: ChainKey) -> None:
        """The chain was deleted."""
        self._refusals.pop(key, None)

    async def create(self, action: CreateJob, plan: Plan, key: ChainKey) -> Outcome:
        """Creates the Job unless it was refused a moment ago.

        The text of a refusal may differ each time, as with the ports of a webhook's error. Writing it to status is an
        event of the chain, so without the backoff each refusal would cause the next.
        """
        metadata = plan.chain.metadata
        job = (metadata.uid, metadata.generation, action.job["metadata"]["name"])
        refusal = self._refusals.get(key)
        if refusal is not None and refusal.job == job and refusal.until > self._monotonic():
            return Outcome(refusal.changes, refusal.until - self._monotonic())
        outcome = await self._create(action, plan, key)
        # An outcome without changes is not kept: the Job exists, and the next reconcile sees it.
        if outcome.changes and outcome.retry_s:
            self._refusals[key] = _Refusal(job, outcome.changes, self._monotonic() + outcome.retry_s)
        return outcome

    async def _create(self, action: CreateJob, plan: Plan, key: ChainKey) -> Outcome:
        name = action.job["metadata"]["name"]
        what = "a dry run of the stage's pod"
        try:
            # The Job alone would be accepted with a pod that its controller can never create.
            await self._cluster.dry_run_pod(build_probe_pod(action.job))
            what = f"Job {name}"
            await self._cluster.create_job(action.job, dry_run=True)
            await self._cluster.create_job(action.job)
        except ApiError as error:
            # No answer: the Job may exist or not. The queue retries, and its name, which never changes, prevents a
            # second one.
            if not error.status:
                raise
            if error.status == 409:
                return await self._name_taken(name, plan, key, error)
            return self._refused(action, plan, key, error, what=what)
        self._metrics.job_created()
        log.info("job created", extra={"chain": str(key), "stage": action.stage, "job": name})
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

    async def _name_taken(self, name: str, plan: Plan, key: ChainKey, error: ApiError) -> Outcome:
        """The conflict is an earlier Job of this chain, a Job of another owner, or two writers of one quota."""
        job = await self._cluster.get_job(key.namespace, name)
        if job is None:
            return Outcome(_waits(f"{error.message}; retrying"), NAME_TAKEN_RETRY_S)
        if is_controlled_by(job, plan.chain.metadata.uid):
            return Outcome({}, OWN_JOB_RETRY_S)
        return Outcome(_waits(f"waiting for {foreign_job(name, key.name)}"), NAME_TAKEN_RETRY_S)


def _waits(message: str) -> dict[str, Any]:
    """How the entry of a stage whose Job cannot be created yet differs from a started one."""
    return {"phase": "Pending", "job": None, "message": fit(message)}
