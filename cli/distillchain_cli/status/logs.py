"""Logs of a chain's trainers: from stage to stage, and from a pod to the one that replaces it. Each line once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from distillchain_api.wire.answer import parse_progress
from distillchain_cli.api_server.chains import stage_names, status_of
from distillchain_cli.api_server.cluster import Cluster
from distillchain_cli.api_server.trainer_pods import TrainerPod, parse_trainer_pod
from distillchain_cli.api_server.watching import WatchedCollections
from distillchain_cli.errors import BadInput, RunFailed, Unreachable
from distillchain_cli.output.phrases import sentence
from distillchain_cli.status.log_reader import read_log
from distillchain_cli.status.outcome import current_outcome

TICK_S = 5.0


@dataclass(frozen=True)
class LogSelection:
    """Which logs to show, and how.

    Attributes:
        stage: only this stage.
        tail: of each pod that exists at the start, only the last lines, this many.
        newest_s: of each pod that exists at the start, only lines of the last seconds, this many.
        previous: the pod before the newest of its stage.
        raw: lines as the trainer wrote them: no stage in front, progress as JSON.
    """

    stage: str | None = None
    tail: int | None = None
    newest_s: int | None = None
    previous: bool = False
    raw: bool = False


@dataclass(frozen=True)
class LogOutput:
    """Where lines go.

    Attributes:
        line: prints a line of a log.
        note: prints a message about the logs.
    """

    line: Callable[[str], None]
    note: Callable[[str], None]


def show_logs(cluster: Cluster, name: str, selection: LogSelection, output: LogOutput) -> None:
    """Prints the logs as they are now. Raises: RunFailed when there are none, or not all could be read."""
    chain = cluster.fetch_chain(name)
    pods = _pods(cluster.list(cluster.pods_of(name))[0], chain, selection)
    chosen = _previous(pods, name, selection) if selection.previous else [pod for pod in pods if pod.has_log]
    if not chosen:
        raise RunFailed(
            f"{_subject(name, selection)} has no log: no pod has started, or the pods are deleted; see kubectl get pods"
        )
    unread = []
    for pod in chosen:
        try:
            _show(cluster, pod, selection, output, follow=False)
        except Unreachable as error:  # the node of this pod may be away while the others are not
            output.note(f"the log of pod {pod.name} cannot be read: {error}")
            unread.append(pod.name)
    if unread:
        raise RunFailed(f"{len(unread)} of {len(chosen)} logs could not be read: {', '.join(unread)}")


def follow_logs(cluster: Cluster, name: str, selection: LogSelection, output: LogOutput) -> None:
    """Prints the logs until the chain, or the selected stage, has ended. Notes say what the chain waits for."""
    if selection.previous:
        raise BadInput("--previous: expected without --follow, because a replaced pod writes no more")
    cluster.fetch_chain(name)  # fails at once if the name is wrong
    watched = WatchedCollections(cluster, {"chain": cluster.chain_collection(name), "pods": cluster.pods_of(name)})
    # --tail and --since are for pods that ran before this command; of later ones the user wants every line.
    at_start = {pod["metadata"]["uid"] for pod in watched["pods"]}
    shown: set[str] = set()
    last_message = last_disconnect = ""
    while True:
        if not watched["chain"]:
            raise RunFailed(f"DistillationChain {name} was deleted")
        chain = watched["chain"][0]
        if pod := _next(watched["pods"], chain, selection, shown):
            shown.add(pod.uid)
            limits = selection if pod.uid in at_start else replace(selection, tail=None, newest_s=None)
            _show(cluster, pod, limits, output, follow=True)
            continue
        with suppress(Unreachable):  # the watches report it, and this loop continues once the server answers
            if ending := _ending(cluster, chain, selection, shown):
                for line in ending:
                    output.note(line)
                return
        if (message := status_of(chain).message or "waiting for the operator") != last_message:
            output.note(message)
            last_message = message
        watched.wait(TICK_S)
        if watched.disconnected and watched.disconnected != last_disconnect:
            output.note(f"reconnecting: {watched.disconnected}")
        last_disconnect = watched.disconnected


def _next(
    documents: Sequence[dict[str, Any]], chain: dict[str, Any], selection: LogSelection, shown: set[str]
) -> TrainerPod | None:
    unread = [pod for pod in _pods(documents, chain, selection) if pod.has_log and pod.uid not in shown]
    # An export runs beside the next stages. While these train, its log is shown when it has ended.
    trains = selection.stage is None and any(entry.phase != "Committed" for entry in status_of(chain).stages)
    return next((pod for pod in unread if not (trains and pod.exports and not pod.is_over)), None)


def _ending(cluster: Cluster, chain: dict[str, Any], selection: LogSelection, shown: set[str]) -> tuple[str, ...]:
    """How the chain, or the selected stage, has ended, in lines; empty while there may be more to show."""
    outcome = current_outcome(chain)
    if outcome is not None and not outcome.final:
        outcome = None  # a stalled chain may continue; its message is shown as any other
    entry = status_of(chain).stage_named(selection.stage) if selection.stage else None
    if outcome is None and (entry is None or entry.phase != "Committed"):
        return ()
    # Chain and pods are watched independently: a pod may have run that the second watch has not reported yet.
    if _next(cluster.list(cluster.pods_of(chain["metadata"]["name"]))[0], chain, selection, shown):
        return ()
    return outcome.lines if outcome else (f"stage {selection.stage} is committed",)


def _pods(documents: Sequence[dict[str, Any]], chain: dict[str, Any], selection: LogSelection) -> list[TrainerPod]:
    """The pods of node 0 of the selected stages in the order in which they ran.

    Raises: BadInput when the chain has no such stage.
    """
    stages = stage_names(chain)
    if selection.stage is not None and selection.stage not in stages:
        raise BadInput(f"--stage: got {selection.stage}, expected one of {', '.join(stages)}")
    order = {stage: index for index, stage in enumerate(stages)}
    pods = [parse_trainer_pod(document) for document in documents]
    chosen = [pod for pod in pods if pod.is_leader and selection.stage in (None, pod.stage)]
    return sorted(chosen, key=lambda pod: (pod.created_at, order.get(pod.stage, 0), pod.name))


def _previous(pods: Sequence[TrainerPod], name: str, selection: LogSelection) -> list[TrainerPod]:
    """The pod before the newest one of the selected stage, or of the stage that ran last."""
    training = [pod for pod in pods if not pod.exports]
    # Pods are sorted by age, so the last one belongs to the stage that ran last.
    same = [pod for pod in training if pod.stage == training[-1].stage] if training else []
    if len(same) < 2:
        raise RunFailed(
            f"{_subject(name, selection)} has no earlier pod; an evicted pod is deleted together with its log"
        )
    return [same[-2]]


def _subject(name: str, selection: LogSelection) -> str:
    return f"stage {selection.stage} of {name}" if selection.stage else name


def _show(cluster: Cluster, pod: TrainerPod, selection: LogSelection, output: LogOutput, *, follow: bool) -> None:
    output.note(f"stage {pod.stage}: pod {pod.name}")
    lines = read_log(
        cluster, pod.name, follow=follow, tail=selection.tail, newest_s=selection.newest_s, note=output.note
    )
    for line in lines:
        output.line(line if selection.raw else f"[{pod.stage}] {readable(line)}")


def readable(line: str) -> str:
    """A log line for people: progress as text instead of JSON, everything else unchanged."""
    progress = parse_progress(line)
    return sentence(progress) if progress else line
