"""Runs kopf in a thread, and the watches of Jobs and pods beside it, on the namespaces that can be read now.

No failure of a watch is a reason to end the operator (session.py). A namespace that cannot be read is not watched, so
that kopf does not ask for it for ever.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import threading
from collections.abc import Callable, Collection, Sequence

import kopf

from distillchain_operator.chain_key import ChainKey
from distillchain_operator.child_watch import ChildWatch
from distillchain_operator.cluster import COMPONENT, Cluster
from distillchain_operator.finished import FinishedChains
from distillchain_operator.handlers import build_kopf_settings, build_registry
from distillchain_operator.namespaces import readable_now

RECHECK_S = 5.0  # of the namespaces
RESTART_S = 2.0  # after a failure; the new watches list all objects again
END_S = 2.0

Report = Callable[[ChainKey, int], None]
"""Takes the key of a chain and its resource version."""

log = logging.getLogger(__name__)


class _Failures(logging.Handler):
    """Reports the errors with which tasks of kopf end in this thread."""

    def __init__(self, report: Callable[[Exception], None]) -> None:
        super().__init__(logging.ERROR)
        self._report = report
        self._thread = threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        """Without an exception, a request failed, which kopf tries again."""
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, Exception) and record.thread == self._thread:
            self._report(error)


class Listener:
    """Kopf in a thread with an event loop of its own, until `stop`.

    In our loop, kopf would take every task for one of its own, and would wait for them and cancel them when it ends.

    Args:
        namespaces: {None} for the whole cluster.
        report: called in kopf's thread for each chain that changed.
    Attributes:
        ended: set when kopf has ended, with its error if it failed.
    """

    def __init__(self, namespaces: Collection[str | None], *, report: Report, finished: FinishedChains) -> None:
        self.ended: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
        self._namespaces = [namespace for namespace in namespaces if namespace]
        self._memo = kopf.Memo(report=report, finished=finished)
        self._loop = asyncio.get_running_loop()
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
        failures = _Failures(self._report_end)
        logging.getLogger("kopf").addHandler(failures)
        try:
            asyncio.run(self._operate())
        except Exception as failure:  # the main thread decides what to do
            error = failure
        finally:
            logging.getLogger("kopf").removeHandler(failures)
        self._report_end(error)

    def _report_end(self, error: Exception | None) -> None:
        with contextlib.suppress(RuntimeError):  # the main loop is closed: the process is ending
            self._loop.call_soon_threadsafe(self._set_ended, error)

    def _set_ended(self, error: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_result(error)

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


async def watch_chains(
    cluster: Cluster,
    namespaces: Sequence[str],
    *,
    report: Report,
    finished: FinishedChains,
    child_watch: ChildWatch,
) -> None:
    """Reports the chains that change, until cancelled. Of the namespaces, those that cannot be read are left out.

    Args:
        namespaces: none for the whole cluster.
        report: called in kopf's thread for each chain that changed.
        child_watch: watches Jobs and pods in the same namespaces.
    """
    listener: Listener | None = None
    watched: set[str | None] | None = None
    try:
        while True:
            readable = await readable_now(cluster, namespaces)
            if readable is not None and readable != watched:
                _log_change(namespaces, readable)
                if listener is not None:
                    listener.stop()
                # First, so that the caches are full when the chains are listed.
                await child_watch.watch(readable)
                watched = readable
                listener = Listener(readable, report=report, finished=finished) if readable else None
            if listener is None:
                await asyncio.sleep(RECHECK_S)
                continue
            # Without a list of namespaces, nothing can change but the listener.
            await asyncio.wait([listener.ended], timeout=RECHECK_S if namespaces else None)
            if listener.ended.done():
                log.warning("watch failed and is started again", extra={"error": _describe(listener.ended.result())})
                listener.stop()
                listener = watched = None
                await asyncio.sleep(RESTART_S)
    finally:
        child_watch.stop()
        if listener is not None:
            listener.stop()


def _log_change(namespaces: Sequence[str], readable: set[str | None]) -> None:
    if not namespaces:
        return
    works_in = ",".join(name for name in namespaces if name in readable)
    refused = ",".join(name for name in namespaces if name not in readable)
    level = logging.WARNING if refused else logging.INFO
    log.log(level, "readable namespaces changed", extra={"namespaces": works_in, "refused": refused})


def _describe(error: Exception | None) -> str:
    return f"{type(error).__name__}: {error}" if error else "kopf ended"
