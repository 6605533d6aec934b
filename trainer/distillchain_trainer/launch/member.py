"""Any node of a group but node 0: joins, reports what happens here, and learns why all nodes end."""

from __future__ import annotations

import asyncio
import logging
import time

from distillchain_trainer.errors import TrainerError
from distillchain_trainer.launch.causes import Cause, is_stronger
from distillchain_trainer.launch.connection import Connection, Gone
from distillchain_trainer.launch.group import LEAVE_S, LOG_EVERY_S, Announce
from distillchain_trainer.launch.messages import MAX_LINE_BYTES, BadMessage, Begin, End, Join, Ready, Refused, Report

log = logging.getLogger(__name__)

CONNECT_S = 10.0  # until a connection is given up
RETRY_S = 1.0  # from one try to join to the next; 256 nodes must not keep node 0 busy
# A pod of an earlier Job, with another number of nodes for example, may still be ending at this address.
REFUSED_S = 120.0


class Member:
    """The group as a node sees it that has joined. Arguments as in Host; `host` and `port` are those of node 0."""

    def __init__(self, me: Join, host: str, port: int, announce: Announce) -> None:
        self._me = me
        self._host = host
        self._port = port
        self._announce = announce
        self._connection: Connection | None = None
        self._reading: asyncio.Task[None] | None = None
        self._refused_since_s: float | None = None
        self._logged_s = 0.0
        self._cause: Cause | None = None
        self._begun_again: asyncio.Queue[str] = asyncio.Queue()

    async def form(self) -> str:
        """Joins, as often as needed, and waits until all nodes have. Raises: TrainerError when node 0 refuses."""
        while True:
            try:
                return await self._join()
            except TimeoutError:
                self._log_waiting(f"no answer for {CONNECT_S:.0f} s")
            except (OSError, Gone, BadMessage) as error:
                # Node 0 has not started yet, is being replaced, or its name is not in the DNS yet.
                self._log_waiting(str(error))
            await asyncio.sleep(RETRY_S)

    async def form_again(self) -> str:
        """As in Group."""
        assert self._connection is not None
        self._connection.send(Ready())
        return await self._begun_again.get()

    def report(self, cause: Cause) -> None:
        """Tells node 0."""
        if self._connection is not None:
            self._connection.send(Report(cause=cause))

    def settle(self) -> None:
        """Node 0 decides."""

    async def leave(self) -> None:
        """Waits for node 0 to read what was sent, at most LEAVE_S."""
        if self._connection is not None and self._reading is not None:
            self._connection.leave()
            await asyncio.wait([self._reading], timeout=LEAVE_S)

    async def _join(self) -> str:
        async with asyncio.timeout(CONNECT_S):
            reader, writer = await asyncio.open_connection(self._host, self._port, limit=MAX_LINE_BYTES)
        connection = Connection(reader, writer)
        try:
            connection.send(self._me)
            answer = await connection.receive()
            if isinstance(answer, Refused):
                self._endure(answer)
                raise Gone(f"refused: {answer.message}")
            if not isinstance(answer, Begin):
                raise BadMessage(f"node 0 sent {answer.kind}")
        except BaseException:  # also a stop while it waits
            await connection.close()
            raise
        self._connection = connection
        self._reading = asyncio.create_task(self._follow(connection))
        return answer.attempt

    def _endure(self, refused: Refused) -> None:
        now = time.monotonic()
        if refused.for_now or self._refused_since_s is None:
            self._refused_since_s = now
        elif now - self._refused_since_s > REFUSED_S:
            raise TrainerError(
                f"node 0 at {self._host}:{self._port} refuses node {self._me.node}: {refused.message}; the pods of a "
                "stage must come from one Job"
            )

    async def _follow(self, connection: Connection) -> None:
        try:
            while True:
                message = await connection.receive()
                if isinstance(message, Begin):
                    self._cause = None
                    self._begun_again.put_nowait(message.attempt)
                elif isinstance(message, End):
                    self._take(message.cause)
                else:
                    raise BadMessage(f"node 0 sent {message.kind}")
        except (Gone, BadMessage) as error:
            if not connection.is_leaving:
                sentence = f"node 0 of {self._me.nodes} is lost: {error}"
                self._take(Cause(kind="NodeLost", node=0, message=sentence))
        finally:
            await connection.close()

    def _take(self, cause: Cause) -> None:
        if is_stronger(cause, self._cause):
            self._cause = cause
            self._announce(cause)

    def _log_waiting(self, why: str) -> None:
        now = time.monotonic()
        if now - self._logged_s >= LOG_EVERY_S:
            self._logged_s = now
            log.info("waiting for node 0", extra={"address": f"{self._host}:{self._port}", "why": why})
