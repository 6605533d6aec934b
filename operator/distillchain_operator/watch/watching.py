"""Runs kopf in a thread, and the watches of Jobs and pods beside it, on the namespaces that can be read now.

No failure of a watch is a reason to end the operator (session.py). A namespace that cannot be read is not watched, so
that kopf does not ask for it for ever. That it cannot be read is known from its watch, which is refused.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import logging
import threading
from collections.abc import Callable, Collection
from typing import Any, NamedTuple, ParamSpec

import kopf

from distillchain_operator.api_server.cluster import COMPONENT
from distillchain_operator.api_server.namespaces import UNREADABLE, Namespaces
from distillchain_operator.caches.finished import FinishedChains
from distillchain_operator.chain_key import ChainKey
from distillchain_operator.watch.child_watch import ChildWatch
from distillchain_operator.watch.existing import ExistingChains
from distillchain_operator.watch.handlers import build_kopf_settings, build_registry
from distillchain_operator.watch.session import Notes

RESTART_S = 2.0  # after a failure; the new watches list all objects again
END_S = 2.0

Take = Callable[[ChainKey, int], None]
"""Takes the key of a chain and its resource version."""

P = ParamSpec("P")

log = logging.getLogger(__name__)


class _Failures(logging.Handler):
    """Reports the errors that end tasks of kopf in this thread."""

    def __init__(self, report: Callable[[Exception], None]) -> None:
        super().__init__(logging.ERROR)
        self._report = report
        self._thread = threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        """Without an exception, a request failed, which kopf tries again."""
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, Exception) and record.thread == self._thread:
            self._report(error)


class Reports(NamedTuple):
    """What takes the reports about chains.

    Attributes:
        changed: takes each chain that has changed.
        listed: takes each chain of a list, which kopf makes when it starts, and when it may have missed a change. The
            chains that have succeeded and were not edited since are left out.
    """

    changed: Take
    listed: Take


class Listener:
    """Kopf in a thread with an event loop of its own, until `stop`.

    In our loop, kopf would take every task for one of its own, and would wait for them and cancel them when it ends.

    Args:
        namespaces: {None} for the whole cluster.
        refused: called in our loop with a namespace whose watch was refused, and the HTTP code.
    Attributes:
        ended: set when kopf has ended, with its error if it failed.
        existing: the chains that it has seen.
    """

    def __init__(
        self,
        namespaces: Collection[str | None],
        *,
        reports: Reports,
        finished: FinishedChains,
        refused: Callable[[str | None, int], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[Exception | None] = self._loop.create_future()
        self.existing = ExistingChains(namespaces)
        self._namespaces = [namespace for namespace in namespaces if namespace]
        self._refused = refused
        notes = Notes(
            is_news=lambda metadata: not finished.is_unchanged(metadata),
            existing=self.existing,
            refused=self._in_loop(self._report_refused),
        )
        self._memo = kopf.Memo(
            changed=self._in_loop(reports.changed), listed=self._in_loop(reports.listed), notes=notes
        )
        self._stop = threading.Event()
        # A daemon, so that the process never waits for it.
        self._thread = threading.Thread(target=self._run, name="kopf", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Asks kopf to end; does not wait for it."""
        self._stop.set()
        # At the end of the process it has a moment to close its connections.
        atexit.register(self._thread.join, END_S)

    def _run(self) -> None:
        error = None
        # After a failure of one watch, kopf may wait for the others for ever; but it logs the failure first.
        report_end = self._in_loop(self._set_ended)
        failures = _Failures(report_end)
        logging.getLogger("kopf").addHandler(failures)
        try:
            asyncio.run(self._operate())
        except Exception as failure:  # the main thread decides what to do
            error = failure
        finally:
            logging.getLogger("kopf").removeHandler(failures)
        report_end(error)

    def _in_loop(self, function: Callable[P, None]) -> Callable[P, None]:
        """What kopf's thread calls instead of a function of our loop."""

        def call(*args: P.args, **more: P.kwargs) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the process is ending
                self._loop.call_soon_threadsafe(functools.partial(function, *args, **more))

        return call

    def _set_ended(self, error: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_result(error)

    def _report_refused(self, namespace: str | None, status: int) -> None:
        if not self._stop.is_set():
            self._refused(namespace, status)

    async def _operate(self) -> None:
        # Some tasks of kopf fail while it ends, and nobody awaits them; why it ended is in `ended`.
        asyncio.get_running_loop().set_exception_handler(lambda _, context: log.debug("kopf: %s", context["message"]))
        await kopf.operator(
            registry=build_registry(),
            settings=build_kopf_settings(),
            memo=self._memo,
            standalone=True,
            # Without it, kopf asks for the user's name, which a numeric user may not have.
            identity=COMPONENT,  # type: ignore[arg-type]  # a NewType of str that kopf does not export
            clusterwide=not self._namespaces,
            namespaces=self._namespaces,
            stop_flag=self._stop,
        )


class ChainWatches:
    """Reports the chains that change, while `run` is running. Namespaces that cannot be read are left out.

    Args:
        child_watch: watches Jobs and pods in the same namespaces.
    """

    def __init__(
        self, namespaces: Namespaces, *, reports: Reports, finished: FinishedChains, child_watch: ChildWatch
    ) -> None:
        self._namespaces, self._reports, self._finished = namespaces, reports, finished
        self._child_watch = child_watch
        self._listener: Listener | None = None
        self._watched: set[str | None] = set()

    @property
    def existing(self) -> ExistingChains | None:
        """The chains of the namespaces that can be read; None if none can."""
        return self._listener.existing if self._listener else None

    async def run(self) -> None:
        """Until it is cancelled."""
        try:
            while True:
                await self._namespaces.check()
                await self._watch_readable()
                await self._wait()
        finally:
            self._child_watch.stop()
            self._stop_listener()

    async def _watch_readable(self) -> None:
        readable = set(self._namespaces.readable)
        if readable == self._watched:
            return
        self._log_change(readable)
        self._stop_listener()
        # First, so that the caches are full when the chains are listed.
        await self._child_watch.watch(readable)
        self._watched = readable
        if readable:
            self._listener = Listener(
                readable, reports=self._reports, finished=self._finished, refused=self._note_refused
            )

    async def _wait(self) -> None:
        """Until kopf has ended, a watch was refused, or a namespace has to be asked."""
        doubted = asyncio.create_task(self._namespaces.doubted.wait())
        waits: list[asyncio.Future[Any]] = [doubted, *([self._listener.ended] if self._listener else [])]
        try:
            await asyncio.wait(waits, timeout=self._namespaces.due_in_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            doubted.cancel()
        if self._listener is not None and self._listener.ended.done():
            log.warning("watch failed and is started again", extra={"error": _describe(self._listener.ended.result())})
            self._stop_listener()
            self._watched = set()
            await asyncio.sleep(RESTART_S)

    def _note_refused(self, namespace: str | None, status: int) -> None:
        if status in UNREADABLE:
            self._namespaces.doubt(namespace)

    def _stop_listener(self) -> None:
        if self._listener is not None:
            self._listener.stop()
            self._listener = None

    def _log_change(self, readable: set[str | None]) -> None:
        works_in = ",".join(name or "all" for name in self._namespaces.names if name in readable)
        refused = ",".join(name or "all" for name in self._namespaces.names if name not in readable)
        level = logging.WARNING if refused else logging.INFO
        log.log(level, "readable namespaces changed", extra={"namespaces": works_in, "refused": refused})


def _describe(error: Exception | None) -> str:
    return f"{type(error).__name__}: {error}" if error else "kopf ended"
