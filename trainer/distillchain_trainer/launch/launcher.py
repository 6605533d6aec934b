"""Runs a stage in several processes, on this node or on several: starts the ranks, stops them together, one answer.

Imports no torch, and runs as long as its ranks: it is process 1 of its pod.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from distillchain_api.wire.answer import Interrupted
from distillchain_api.wire.work_order import WorkOrder
from distillchain_trainer.launch.causes import Cause, cause_of, is_stronger, node_ending
from distillchain_trainer.launch.ending import Ending, interrupted
from distillchain_trainer.launch.group import PEERS_LOST_S, Group
from distillchain_trainer.launch.handover import RankStart
from distillchain_trainer.launch.host import Host
from distillchain_trainer.launch.member import Member
from distillchain_trainer.launch.messages import Join
from distillchain_trainer.launch.place import Place
from distillchain_trainer.launch.rank import STACK_SIGNAL
from distillchain_trainer.launch.ranks import Ranks
from distillchain_trainer.signals import Signals
from distillchain_trainer.stage_warnings import StageWarnings

log = logging.getLogger(__name__)

# After a failure, the other ranks cannot save together. They end when a collective fails; one that hangs is killed.
KILL_AFTER_S = 60.0
# A rank that lost another one often ends before that one does. SIGTERM would replace its failure by an interruption.
FAIL_S = 5.0
STACKS_S = 1.0  # for a hanging rank to write its stacks
DECISION_S = PEERS_LOST_S + 10.0  # longest wait for node 0's decision


def launch(
    order: WorkOrder,
    place: Place,
    *,
    attempt: str,
    folder: Path,
    warnings: list[str],
    signals: Signals,
    progress: TextIO,
) -> Ending:
    """Runs all ranks of this node. Signals must be deferred.

    Args:
        attempt: of this pod; all ranks use that of node 0.
        folder: for files in the making; shared by the ranks.
        warnings: what the launcher has found.
        progress: stream of the progress lines.
    """
    start = RankStart(
        launcher=os.getpid(),
        attempt=attempt,
        folder=str(folder / "stage"),
        end=str(folder / "end"),
        warnings=warnings,
    )
    return asyncio.run(_Launcher(order, place, start, progress.fileno()).run(signals))


class _Launcher:
    """Watches over ranks and group. All methods run in the event loop, so none needs a lock."""

    def __init__(self, order: WorkOrder, place: Place, start: RankStart, progress: int) -> None:
        self._order = order
        self._place = place
        self._start = start
        self._progress = progress
        self._folder = Path(start.folder)
        self._group = self._build_group()
        self._ranks: Ranks | None = None
        self._ends: dict[int, Ending] = {}
        self._own: Cause | None = None
        self._cause: Cause | None = None
        self._shortage: Cause | None = None
        self._are_stopping = False
        self._timers: list[asyncio.TimerHandle] = []
        self._changed = asyncio.Event()

    def _build_group(self) -> Group:
        order, place = self._order, self._place
        me = Join(
            digest=order.digest,
            node=place.node,
            nodes=place.nodes,
            processes=place.processes,
            attempt=self._start.attempt,
        )
        if place.node == 0:
            return Host(me, place.port, self._on_cause)
        return Member(me, place.host, place.port, self._on_cause)

    async def run(self, signals: Signals) -> Ending:
        """Returns: how this node ends."""
        attempt = await self._form(signals)
        if attempt is None:
            return interrupted(self._order, 0)
        try:
            await self._run_ranks(attempt, signals)
            while attempt := await self._form_again():
                await self._run_ranks(attempt, signals)
        finally:
            signals.on_stop = signals.on_trace = None
        await self._group.leave()
        return node_ending(self._order, self._place.node, self._ends, own=self._own, group=self._cause)

    async def _run_ranks(self, attempt: str, signals: Signals) -> None:
        """From the start of the ranks until they have ended and it is known why."""
        self._ranks = self._start_ranks(attempt)
        try:
            loop = asyncio.get_running_loop()
            signals.on_stop = functools.partial(loop.call_soon_threadsafe, self._on_stop)
            signals.on_trace = functools.partial(loop.call_soon_threadsafe, self._ranks.trace)
            if signals.requested:  # while the ranks were started
                self._on_stop()
            if self._cause is not None:  # a node was lost meanwhile
                self._end_ranks(self._cause)
            while self._ranks.running:
                await self._wait()
            self._group.settle()
            await self._learn_cause()
        finally:
            self._ranks.kill()

    def _start_ranks(self, attempt: str) -> Ranks:
        self._folder = Path(f"{self._start.folder}-{attempt}")
        self._folder.mkdir()
        start = self._start.model_copy(
            update={
                "attempt": attempt,
                "folder": str(self._folder),
                "end": f"{self._start.end}-{attempt}",
                "warnings": self._warnings(),
                "fitting_rows": self._shortage.smaller_rows if self._shortage else None,
            }
        )
        log.info("ranks start", extra={"node": self._place.node, "ranks": self._place.processes, "attempt": attempt})
        return Ranks(self._order, self._place, start, progress=self._progress, on_end=self._on_rank_end)

    async def _form_again(self) -> str:
        """If memory was short, waits until all nodes can start again, with smaller micro-batches.

        Returns: the attempt; empty: the stage has ended.
        """
        short = self._cause
        if short is None or short.kind != "MemoryShort":
            return ""
        forming = asyncio.create_task(self._group.form_again())
        forming.add_done_callback(lambda _: self._changed.set())
        # A stop or a lost node replaces the cause.
        while self._cause is short and not forming.done():
            await self._wait()
        if self._cause is not short:
            forming.cancel()
            return ""
        self._prepare_again(short)
        return forming.result()

    def _prepare_again(self, short: Cause) -> None:
        for timer in self._timers:
            timer.cancel()
        self._ends, self._timers = {}, []
        self._own = self._cause = None
        self._are_stopping = False
        # A tracker of the ranks that were killed may still write there, so the next ranks have another folder.
        shutil.rmtree(self._folder, ignore_errors=True)
        self._shortage = short

    def _warnings(self) -> list[str]:
        """What the launcher has found, which ranks do not log."""
        warnings = StageWarnings(self._start.warnings)
        if self._shortage is not None:
            # Of several shortages the last: it says with which size the training succeeded.
            warnings.add(
                f"{self._shortage.message}; all processes have started again with microBatchSize "
                f"{self._shortage.smaller_rows}; set it in the chain to avoid the restart"
            )
        return warnings.sentences

    async def _form(self, signals: Signals) -> str | None:
        """The attempt of the group; None: a stop was requested before all nodes had joined."""
        forming = asyncio.create_task(self._group.form())
        loop = asyncio.get_running_loop()
        signals.on_stop = functools.partial(loop.call_soon_threadsafe, forming.cancel)
        if signals.requested:
            forming.cancel()
        try:
            return await forming
        except asyncio.CancelledError:
            return None

    async def _wait(self) -> None:
        await self._changed.wait()
        self._changed.clear()

    async def _learn_cause(self) -> None:
        """Waits for the cause that all nodes end for, after the ranks of this one have ended."""
        # Ranks that have completed their part wait for the commit; node 0 says when it is there, or that it is lost.
        patience_s = DECISION_S if self._own is not None else None
        try:
            async with asyncio.timeout(patience_s):
                while self._cause is None or (self._own is not None and is_stronger(self._own, self._cause)):
                    await self._wait()
        except TimeoutError:
            log.warning("node 0 did not decide why the group ends", extra={"waited_s": patience_s})

    def _on_stop(self) -> None:
        """SIGTERM or SIGINT: all ranks of all nodes stop at the same step and save."""
        self._note(Cause(kind="Stopped", node=self._place.node))
        self._stop_ranks()

    def _on_rank_end(self, rank: int, ending: Ending) -> None:
        self._ends[rank] = ending
        self._changed.set()
        cause = cause_of(self._place.node, rank, ending)
        # A rank that was stopped ends because of the cause that is known already.
        if cause is None or (self._are_stopping and isinstance(ending.answer, Interrupted)):
            return
        log.info("rank ended", extra={"ended": rank, "cause": cause.kind, "why": cause.message})
        self._note(cause)
        self._end_ranks(cause)

    def _on_cause(self, cause: Cause) -> None:
        """All nodes end for this cause."""
        self._cause = cause
        self._changed.set()
        if self._ranks is not None:
            self._end_ranks(cause)

    def _note(self, cause: Cause) -> None:
        if is_stronger(cause, self._own):
            self._own = cause
            self._group.report(cause)

    def _end_ranks(self, cause: Cause) -> None:
        if cause.kind == "MemoryShort":
            # They wait for the rank that ran out of memory, and their next state is that of the new start.
            self._are_stopping = True
            assert self._ranks is not None
            self._ranks.kill()
            return
        if cause.kind == "PeersLost":
            self._later(FAIL_S, self._stop_ranks)
        elif cause.kind != "Committed":  # after a commit nothing is left to save, and ranks leave by themselves
            self._stop_ranks()
        # After a stop there is no limit but the pod's grace period: a large state takes long to save.
        if cause.kind != "Stopped":
            self._later(KILL_AFTER_S, self._kill_ranks)

    def _later(self, seconds: float, act: Callable[[], None]) -> None:
        self._timers.append(asyncio.get_running_loop().call_later(seconds, act))

    def _stop_ranks(self) -> None:
        assert self._ranks is not None
        if not self._are_stopping:
            self._are_stopping = True
            self._ranks.signal(signal.SIGTERM)

    def _kill_ranks(self) -> None:
        assert self._ranks is not None
        if not self._ranks.running:
            return
        log.warning("ranks did not end and are killed", extra={"ranks": self._ranks.running, "after_s": KILL_AFTER_S})
        self._ranks.signal(STACK_SIGNAL)
        asyncio.get_running_loop().call_later(STACKS_S, self._ranks.kill)
