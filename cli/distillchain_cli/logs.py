"""The trainers' logs of a chain: from stage to stage, from a pod to the one that replaces it, each line once."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from distillchain_api.wire.answer import parse_progress
from distillchain_cli.chains import stage_names, status_of
from distillchain_cli.cluster import Cluster
from distillchain_cli.errors import BadInput, NotThere, RunFailed, Silent, Unreachable
from distillchain_cli.live import sentence
from distillchain_cli.verdict import fetch_verdict
from distillchain_cli.watching import PATIENCE_S, Watched
from distillchain_operator.labels import STAGE_LABEL
from distillchain_operator.observed import parse_pod

TICK_S = 5.0
FRACTION = re.compile(r"\.\d+")  # of a second, in a timestamp
SHORT_PATIENCE_S = 10  # for a log as it is now: a person waits for it
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 10.0


@dataclass(frozen=True)
class Wanted:
    """Which logs, and how they are shown.

    Attributes:
        stage: only this one.
        tail: of each pod that is there at the start, the last so many lines.
        previous: of a stage, the pod before its newest.
        raw: as the trainer wrote them: no stage in front, progress as JSON.
    """

    stage: str | None = None
    tail: int | None = None
    previous: bool = False
    raw: bool = False


@dataclass(frozen=True)
class TrainerPod:
    """A pod of one stage."""

    name: str
    uid: str
    stage: str
    created_at: str
    has_log: bool
    """Its trainer runs or has ended."""
    is_over: bool


@dataclass(frozen=True)
class Mouth:
    """Where lines go.

    Attributes:
        show: a line of a log.
        say: a word of ours.
    """

    show: Callable[[str], None]
    say: Callable[[str], None]


def show_logs(cluster: Cluster, name: str, wanted: Wanted, mouth: Mouth) -> None:
    """The logs as they are now. Raises: RunFailed when there are none, or not all could be read."""
    chain = cluster.fetch_chain(name)
    pods = _pods(cluster.list(cluster.pods_of(name))[0], chain, wanted)
    chosen = _previous(pods, name, wanted) if wanted.previous else [pod for pod in pods if pod.has_log]
    if not chosen:
        of = f"stage {wanted.stage} of {name}" if wanted.stage else name
        raise RunFailed(f"{of} has no log: no pod of it has started, or its pods are gone; see kubectl get pods")
    unread = []
    for pod in chosen:
        try:
            _show(cluster, pod, wanted, mouth, follow=False, tail=wanted.tail)
        except Unreachable as error:  # its node may be away, and the others not
            mouth.say(f"the log of pod {pod.name} cannot be read: {error}")
            unread.append(pod.name)
    if unread:
        raise RunFailed(f"{len(unread)} of {len(chosen)} logs could not be read: {', '.join(unread)}")


def follow_logs(cluster: Cluster, name: str, wanted: Wanted, mouth: Mouth) -> None:
    """The logs until the chain, or the wanted stage, has ended; what is waited for is said between."""
    if wanted.previous:
        raise BadInput("--previous: a pod that was replaced writes no more; leave out --follow")
    cluster.fetch_chain(name)  # a wrong name is told at once
    watched = Watched(cluster, {"chain": cluster.the_chain(name), "pods": cluster.pods_of(name)})
    at_start = {pod["metadata"]["uid"] for pod in watched["pods"]}
    shown: set[str] = set()
    said = lost = ""
    while True:
        if not watched["chain"]:
            raise RunFailed(f"DistillationChain {name} was deleted")
        chain = watched["chain"][0]
        if pod := _next(watched["pods"], chain, wanted, shown):
            shown.add(pod.uid)
            _show(cluster, pod, wanted, mouth, follow=True, tail=wanted.tail if pod.uid in at_start else None)
            continue
        with suppress(Unreachable):  # the watches say so, and go on once it answers
            if ending := _ending(cluster, chain, wanted, shown):
                for line in ending:
                    mouth.say(line)
                return
        if (message := status_of(chain).message or "waiting for the operator") != said:
            mouth.say(message)
            said = message
        watched.wait(TICK_S)
        if watched.lost and watched.lost != lost:
            mouth.say(f"reconnecting: {watched.lost}")
        lost = watched.lost


def _next(
    documents: Sequence[dict[str, Any]], chain: dict[str, Any], wanted: Wanted, shown: set[str]
) -> TrainerPod | None:
    return next((pod for pod in _pods(documents, chain, wanted) if pod.has_log and pod.uid not in shown), None)


def _ending(cluster: Cluster, chain: dict[str, Any], wanted: Wanted, shown: set[str]) -> tuple[str, ...]:
    """How the chain, or the wanted stage, has ended, in lines; none while there may be more to show."""
    verdict = fetch_verdict(cluster, chain)
    if verdict is not None and not verdict.final:
        verdict = None  # its message is said as any other
    entry = status_of(chain).stage_named(wanted.stage) if wanted.stage else None
    if verdict is None and (entry is None or entry.phase != "Committed"):
        return ()
    # The two watches do not wait for each other: a pod may have run that this one has not told of yet.
    if _next(cluster.list(cluster.pods_of(chain["metadata"]["name"]))[0], chain, wanted, shown):
        return ()
    return verdict.lines if verdict else (f"stage {wanted.stage} is committed",)


def _pods(documents: Sequence[dict[str, Any]], chain: dict[str, Any], wanted: Wanted) -> list[TrainerPod]:
    """The pods of the wanted stages in the order in which they ran.

    Raises: BadInput when the chain has no such stage.
    """
    stages = stage_names(chain)
    if wanted.stage is not None and wanted.stage not in stages:
        raise BadInput(f"--stage: got {wanted.stage}, expected one of {', '.join(stages)}")
    order = {stage: index for index, stage in enumerate(stages)}
    pods = [parse_trainer_pod(document) for document in documents]
    chosen = [pod for pod in pods if wanted.stage in (None, pod.stage)]
    return sorted(chosen, key=lambda pod: (pod.created_at, order.get(pod.stage, 0), pod.name))


def parse_trainer_pod(document: dict[str, Any]) -> TrainerPod:
    """A pod out of the API server's JSON."""
    pod = parse_pod(document)
    return TrainerPod(
        name=pod.name,
        uid=pod.uid,
        stage=(document["metadata"].get("labels") or {}).get(STAGE_LABEL, ""),
        created_at=pod.created_at,
        has_log=pod.running or pod.end is not None,
        is_over=pod.is_over or pod.end is not None,
    )


def _previous(pods: Sequence[TrainerPod], name: str, wanted: Wanted) -> list[TrainerPod]:
    """The pod before the newest, of the wanted stage or the one that ran last."""
    same = [pod for pod in pods if pod.stage == pods[-1].stage] if pods else []
    if len(same) < 2:
        of = f"stage {wanted.stage} of {name}" if wanted.stage else name
        raise RunFailed(f"{of} has no earlier pod; an evicted pod is deleted, and its log with it")
    return [same[-2]]


def _show(cluster: Cluster, pod: TrainerPod, wanted: Wanted, mouth: Mouth, *, follow: bool, tail: int | None) -> None:
    mouth.say(f"stage {pod.stage}: pod {pod.name}")
    for line in read_log(cluster, pod.name, follow=follow, tail=tail, say=mouth.say):
        mouth.show(line if wanted.raw else f"[{pod.stage}] {readable(line)}")


def readable(line: str) -> str:
    """A line for a person: progress in words, everything else as it is."""
    progress = parse_progress(line)
    return sentence(progress) if progress else line


def read_log(
    cluster: Cluster, pod: str, *, follow: bool, tail: int | None, say: Callable[[str], None]
) -> Iterator[str]:
    """The lines of a trainer's log, each once, over lost connections; `follow`: until the trainer has ended.

    After a loss the log is read again from the second of the newest line. Raises: Unreachable when it stays away.
    """
    patience_s = PATIENCE_S if follow else SHORT_PATIENCE_S
    place = _Place()
    failed_at: float | None = None
    pause_s = FIRST_PAUSE_S
    while True:
        try:
            since = place.second
            for line in cluster.log_lines(pod, follow=follow, tail=None if since else tail, since=since):
                failed_at, pause_s = None, FIRST_PAUSE_S
                if (text := place.take(line)) is not None:
                    yield text
            if not follow:
                return
            document = cluster.fetch_pod(pod)
            follow = document is not None and not parse_trainer_pod(document).is_over
            if document is None:
                return
            time.sleep(0 if not follow else FIRST_PAUSE_S)  # ended by someone between us and the kubelet
        except NotThere:
            say(f"pod {pod} is gone, and with it what it wrote since")
            return
        except Silent:
            pass
        except Unreachable as error:
            now = time.monotonic()
            if failed_at is None:
                say(f"reconnecting: {error}")
            failed_at = failed_at or now
            if now - failed_at > patience_s:
                raise
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        place.rewind()


class _Place:
    """Where in a log one is: the second of the newest line, and the lines of that second that were given.

    Whole lines, not an order of timestamps: stdout and stderr are stamped apart and may stand in the other order.
    """

    def __init__(self) -> None:
        self.second: str | None = None
        self._given: Counter[str] = Counter()
        self._again: Counter[str] = Counter()

    def rewind(self) -> None:
        """The log is read again from `second`: sinceTime has no fractions."""
        self._again = self._given.copy()

    def take(self, line: str) -> str | None:
        """The line without its timestamp; None when it was given before."""
        if self._again[line]:
            self._again[line] -= 1
            return None
        moment, _, text = line.partition(" ")
        second = FRACTION.sub("", moment)
        if self.second is None or second > self.second:
            self.second, self._given = second, Counter()
        if second == self.second:
            self._given[line] += 1
        return text
