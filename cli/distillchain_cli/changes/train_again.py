"""Trains a chain again from one of its stages: failed stages, and with `--discard` committed ones too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distillchain_api.failures import StageError
from distillchain_api.graph import Plan, PlannedStage, build_plan
from distillchain_api.layout import logits_prefix, manifest_key, pass_manifest_key, resume_prefix
from distillchain_api.resource.spec import parse_chain
from distillchain_api.resource.status import ChainStatus
from distillchain_api.resource.storage import Storage
from distillchain_api.retry_request import open_retry
from distillchain_cli.api_server.chains import status_of, true_condition
from distillchain_cli.api_server.cluster import Cluster
from distillchain_cli.api_server.trainer_pods import parse_trainer_pod
from distillchain_cli.arguments.overrides import parse_storage
from distillchain_cli.changes.run_request import request_run
from distillchain_cli.errors import BadInput, RunFailed
from distillchain_cli.output.columns import size
from distillchain_cli.program import program_name
from distillchain_cli.stores import open_chain_store
from distillchain_operator.jobs.observed import ObservedJob
from distillchain_operator.jobs.parsing import parse_job

if TYPE_CHECKING:
    from distillchain_store.store import Store


def train_again(
    cluster: Cluster,
    name: str,
    stage: str,
    *,
    discard: bool,
    logits: bool,
    storage: str | None,
    now: Callable[[], datetime],
) -> str:
    """Asks the operator to run a stage again, and every vertex that is taught or compared from it.

    Args:
        discard: commits and saved states of these stages are discarded first, or their trainers would find them.
        logits: the outputs of teachers that these stages learned from are deleted too, or they would be read again.
        storage: URI of the store, if it has another one from here.
    Returns: a sentence about the change. Raises: RunFailed if that is not possible now; BadInput for a stage that the
        chain does not have.
    """
    document = cluster.fetch_chain(name)
    plan, status = build_plan(parse_chain(document, from_cluster=True)), status_of(document)
    affected = _from_stage(plan, stage)
    token = now().isoformat(timespec="milliseconds")
    phases = {entry.name: entry.phase for entry in status.entries}
    committed = [vertex for vertex in affected if phases.get(vertex.name) == "Committed"]
    if not discard:
        if committed:
            raise RunFailed(
                f"{_names(committed)} of {name} {'are' if len(committed) > 1 else 'is'} committed; to train from "
                f"{stage} again: --discard, which moves their manifests aside in the store"
            )
        failed = [vertex.name for vertex in affected if phases.get(vertex.name) == "Failed"]
        if not failed:
            raise RunFailed(f"nothing to retry: no stage of {name} from {stage} on has failed")
        request_run(cluster, document, failed, token=token)
        return f"retrying {', '.join(failed)}; the operator creates another Job for each"
    _check_idle(name, document, status, affected)
    _check_others(cluster, name, affected)
    _check_stopped(cluster, status, affected)
    address = plan.chain.spec.storage if storage is None else parse_storage(storage, Path.cwd())
    discarded = _discard(address, plan, affected, logits=logits)
    # Last: from now on the operator starts trainers, and none may find a commit that is about to be discarded.
    request_run(cluster, document, [vertex.name for vertex in affected], token=token, committed_too=True)
    moved, cleared = discarded.manifests, discarded.states
    where = f"{len(moved)} manifest{'' if len(moved) == 1 else 's'} moved to discarded/ in {address.uri}"
    where += f", saved states of {', '.join(cleared)} deleted" if cleared else ""
    where += f", {size(discarded.outputs_bytes)} of teachers' outputs deleted" if logits else ""
    where += f" (outputs of {', '.join(discarded.unknown)}: not known)" if discarded.unknown else ""
    then = f"; to start it: {program_name()} resume {name}" if document["spec"].get("suspend") else ""
    return f"training {', '.join(vertex.name for vertex in affected)} again: {where}{then}"


def _from_stage(plan: Plan, name: str) -> list[PlannedStage]:
    """A stage and all vertices that need it, in the order of the plan."""
    if plan.stage(name) is None:
        raise BadInput(f"--from: got {name}, expected one of {', '.join(stage.name for stage in plan.vertices)}")
    found = {name}
    for vertex in plan.vertices:
        if found.intersection(vertex.needs):
            found.add(vertex.name)
    return [vertex for vertex in plan.vertices if vertex.name in found]


def _check_idle(name: str, chain: dict[str, Any], status: ChainStatus, affected: Sequence[PlannedStage]) -> None:
    """Checks that no trainer of these stages runs or is about to start: it could commit what it learned before."""
    metadata = chain["metadata"]
    is_open = bool(open_retry(metadata.get("annotations"), status.handled_retry).stages)
    is_current = status.observed_generation == metadata["generation"] and not is_open
    is_suspended = true_condition(status, "Suspended") is not None
    phases = {entry.name: entry.phase for entry in status.entries}
    # The operator tries to create a Job again that the API server has refused.
    refused = {entry.name for entry in status.entries if entry.phase == "Failed" and entry.job is None}
    busy = [vertex.name for vertex in affected if phases.get(vertex.name) in ("Running", None)]
    # The controls of a chain that has succeeded may start at any moment.
    is_over = (status.phase == "Failed" and not refused) or (
        status.phase == "Succeeded" and all(phases.get(vertex.name) != "Pending" for vertex in affected)
    )
    if is_current and not busy and (is_suspended or is_over):
        return
    raise RunFailed(
        f"{name} is {status.phase}, and a trainer could commit while the commits are discarded; suspend it first: "
        f"{program_name()} suspend {name}, then run this again, and {program_name()} resume {name}"
    )


def _check_others(cluster: Cluster, name: str, affected: Sequence[PlannedStage]) -> None:
    """Checks that no other chain of the namespace is about to read what is discarded."""
    digests = {vertex.digest for vertex in affected}
    for other in cluster.list_chains():
        status = status_of(other)
        shared = [entry.name for entry in status.entries if entry.digest in digests]
        if other["metadata"]["name"] != name and shared and status.phase in ("Pending", "Running"):
            raise RunFailed(
                f"chain {other['metadata']['name']} is {status.phase} and has the same stage {shared[0]}; wait for its "
                "end, or suspend it"
            )


def _check_stopped(cluster: Cluster, status: ChainStatus, affected: Sequence[PlannedStage]) -> None:
    """Checks that no pod of these stages is left that could commit, and that no Job of them starts one."""
    # A stage is Failed as soon as its Job is to be deleted. Its pods have their grace period then, and the Job runs on
    # if the API server refuses the deletion.
    names = {vertex.name for vertex in affected}
    jobs = [entry.job for entry in status.entries if entry.name in names and entry.phase == "Failed" and entry.job]
    left = [f"Job {job.name}" for job in map(parse_job, filter(None, map(cluster.fetch_job, jobs))) if _may_start(job)]
    documents, _ = cluster.list(cluster.pods_of_digests(vertex.digest for vertex in affected))
    left += [f"pod {pod.name}" for pod in map(parse_trainer_pod, documents) if not pod.is_over]
    if left:
        raise RunFailed(
            f"{left[0]} has not ended, and a trainer could commit while the commits are discarded; wait for its end, "
            "then run this again"
        )


def _may_start(job: ObservedJob) -> bool:
    """Whether a Job may start a pod."""
    return not (job.is_finished or job.deleting or job.suspend_wanted)


@dataclass(frozen=True)
class _Discarded:
    """What is gone.

    Attributes:
        manifests: where they are now.
        states: names of the stages that had saved states.
        unknown: names of stages and passes whose teachers' outputs are not known: they have not come so far.
    """

    manifests: list[str]
    states: list[str]
    outputs_bytes: int = 0
    unknown: list[str] = field(default_factory=list)


def _discard(address: Storage, plan: Plan, affected: Sequence[PlannedStage], *, logits: bool) -> _Discarded:
    """Deletes the saved states of these stages, then moves their manifests aside, the last one first."""
    # If this is interrupted, no student is left that was taught by a discarded one. A verdict is always made again.
    stages = [vertex for vertex in affected if not vertex.is_verdict]
    try:
        from distillchain_store.discarding import delete_outputs, discard_commits

        store = open_chain_store(address)
        outputs_bytes, unknown = 0, list[str]()
        if logits:
            found = {vertex.name: _outputs_of(store, plan, stages, vertex) for vertex in stages}
            unknown = [vertex.name for vertex in stages if vertex.work_order.asks_teacher and not found[vertex.name]]
            outputs = set[str]().union(*found.values())
            _check_promised(store, outputs, stages)
            # First: states and manifests name them, for whoever repeats the command after an interruption.
            outputs_bytes = delete_outputs(store, outputs)
        # Before the manifests: a stage that is not committed would continue from them.
        cleared = [vertex.name for vertex in stages if not vertex.is_pass and _delete_states(store, vertex)]
        return _Discarded(discard_commits(store, map(_key, reversed(stages))), cleared, outputs_bytes, unknown)
    except StageError as error:
        raise RunFailed(f"{error}; nothing was started, and the command may be repeated") from error


def _check_promised(store: Store, outputs: set[str], affected: Sequence[PlannedStage]) -> None:
    """Checks that no other pass has promised these outputs to stages, which would not compute them again."""
    from distillchain_store.garbage import outputs_of_passes

    own = {vertex.digest for vertex in affected if vertex.is_pass}
    promised = outputs_of_passes(store, discarded_after_s=float("inf"), others_than=own)
    if taken := [digest for digest in sorted(outputs) if f"logits/{digest}" in promised]:
        raise RunFailed(
            f"a teacher's pass of another chain also needs {store.uri}/{logits_prefix(taken[0])}, and its stages would "
            "not compute it again; run this command for that chain, with --from its pass, or leave out --logits; "
            "nothing was changed"
        )


def _outputs_of(store: Store, plan: Plan, affected: Sequence[PlannedStage], vertex: PlannedStage) -> set[str]:
    """The outputs of teachers that a stage or pass has read. Raises: RunFailed if they cannot be deleted."""
    from distillchain_store.discarding import outputs_used

    teacher = vertex.work_order.teacher
    of_pass = None if vertex.is_pass or teacher is None else teacher.pass_digest
    if of_pass is not None and of_pass not in {other.digest for other in affected}:
        first = next(other.name for other in plan.vertices if other.digest == of_pass)
        raise RunFailed(
            f"the outputs that {vertex.name} learns from belong to the pass {first}, and only the pass computes them "
            f"again; use --from {first}; nothing was changed"
        )
    states = None if vertex.is_pass else resume_prefix(vertex.digest)
    found = outputs_used(store, manifest=_key(vertex), states=states)
    if found is None:
        raise RunFailed(
            f"{store.uri}/{_key(vertex)}, or a saved state, does not record which outputs {vertex.name} learned from, "
            "because an earlier release wrote it, or it is damaged; while no chain uses the store, delete all outputs "
            f"({program_name()} gc --logits --older-than 0s --delete), then run this without --logits; nothing was "
            "changed"
        )
    return found


def _delete_states(store: Store, stage: PlannedStage) -> bool:
    """Whether the stage had saved states, which are deleted now. Raises: RunFailed if they cannot be deleted."""
    from distillchain_store.discarding import delete_states

    try:
        return delete_states(store, stage.digest)
    except StageError as error:
        raise RunFailed(
            f"the saved states of {stage.name} cannot be deleted, and its trainer would continue from them instead of "
            f"training again: {error}; use credentials that may delete, or delete "
            f"{store.uri}/{resume_prefix(stage.digest)} yourself, then run this again; nothing was started"
        ) from error


def _key(vertex: PlannedStage) -> str:
    return pass_manifest_key(vertex.digest) if vertex.is_pass else manifest_key(vertex.digest)


def _names(stages: Sequence[PlannedStage]) -> str:
    return f"stage{'s' if len(stages) > 1 else ''} {', '.join(stage.name for stage in stages)}"
