"""Node 0 of a group: admits the other nodes, notices when one is lost, and decides why all of them end."""

from __future__ import annotations

import asyncio
import logging
import socket

from distillchain_trainer.errors import TrainerError
from distillchain_trainer.launch.causes import Cause, is_stronger
from distillchain_trainer.launch.connection import Connection, Gone
from distillchain_trainer.launch.group import LEAVE_S, LOG_EVERY_S, PEERS_LOST_S, Announce
from distillchain_trainer.launch.messages import MAX_LINE_BYTES, BadMessage, Begin, End, Join, Ready, Refused, Report

log = logging.getLogger(__name__)

JOIN_S = 10.0  # from a connection to its first message


class Host:
    """The group as node 0 sees it; with one node it has no members and does not listen.

    Args:
        me: what this node would send to join.
        port: where it listens, on all addresses of the pod.
        announce: called with the cause that all nodes end for, and again if a stronger one replaces it.
    """

    def __init__(self, me: Join, port: int, announce: Announce) -> None:
        self._me = me
        self._port = port
        self._announce = announce
        self._members: dict[int, tuple[Join, Connection]] = {}
        self._serving: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._begun = False
        self._formed = 1  # how often
        self._ready: set[int] = set()  # nodes that can start their ranks again
        self._suspicion: Cause | None = None
        self._cause: Cause | None = None

    async def form(self) -> str:
        """Waits until all nodes have joined. Returns: the attempt, which is this pod's."""
        if self._me.nodes > 1:
            await asyncio.start_server(self._serve, sock=_listen(self._port), limit=MAX_LINE_BYTES)
        while missing := sorted(set(range(1, self._me.nodes)) - set(self._members)):
            log.info("waiting for nodes", extra={"nodes": ",".join(map(str, missing)), "of": self._me.nodes})
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), LOG_EVERY_S)
            except TimeoutError:
                continue
        # No rank starts before: a pod that waits in a collective would hold its GPUs without an end.
        self._begun = True
        for _, connection in self._members.values():
            connection.send(Begin(attempt=self._me.attempt))
        return self._me.attempt

    async def form_again(self) -> str:
        """As in Group. Each time the attempt has another name, which trackers need to tell the runs apart."""
        while set(range(1, self._me.nodes)) - self._ready:
            self._changed.clear()
            await self._changed.wait()
        self._ready.clear()
        self._cause = self._suspicion = None
        self._formed += 1
        attempt = f"{self._me.attempt}-{self._formed}"
        for _, connection in self._members.values():
            connection.send(Begin(attempt=attempt))
        return attempt

    def report(self, cause: Cause) -> None:
        """Decides whether all nodes end for this cause."""
        if cause.kind == "PeersLost":
            if self._suspicion is None:
                self._suspicion = cause
                asyncio.get_running_loop().call_later(PEERS_LOST_S, self._confirm, cause)
            return
        self._decide(cause)

    def settle(self) -> None:
        """With one node, nothing more can be learned about why ranks lost each other."""
        if self._me.nodes == 1 and self._suspicion is not None:
            self._decide(self._suspicion)

    async def leave(self) -> None:
        """Members that have read the cause close their connections; others are left after LEAVE_S."""
        for _, connection in self._members.values():
            connection.leave()
        if self._serving:
            await asyncio.wait(self._serving, timeout=LEAVE_S)

    def _confirm(self, suspicion: Cause) -> None:
        # Not if all ranks have started again since.
        if suspicion is self._suspicion:
            self._decide(suspicion)

    def _decide(self, cause: Cause) -> None:
        if not is_stronger(cause, self._cause):
            return
        self._cause = cause
        for _, connection in self._members.values():
            connection.send(End(cause=cause))
        self._announce(cause)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        connection = Connection(reader, writer)
        try:
            join = await connection.receive(patience_s=JOIN_S)
            if not isinstance(join, Join):
                raise BadMessage("the first message is no Join")
            refused = self._refusal(join)
            if refused is None:
                await self._follow(join, connection)
            else:
                log.warning("node refused", extra={"address": connection.peer, "why": refused.message})
                connection.send(refused)
        except (Gone, BadMessage) as error:
            log.warning("connection refused", extra={"address": connection.peer, "why": str(error)})
        finally:
            await connection.close()
            self._serving.discard(task)

    def _refusal(self, join: Join) -> Refused | None:
        difference = self._me.difference(join)
        if difference:
            return Refused(message=difference, for_now=False)
        if not self._begun:
            return None
        # Its pod was replaced before the end of the old one was noticed. All start again together.
        self._lose(join.node, "its pod was replaced")
        return Refused(message=f"node {join.node} takes part already, and the group is ending", for_now=True)

    async def _follow(self, join: Join, connection: Connection) -> None:
        """Listens to a member until it leaves."""
        before = self._members.get(join.node)
        self._members[join.node] = (join, connection)
        log.info("node joined", extra={"node": join.node, "address": connection.peer})
        self._changed.set()
        if before is not None:  # a pod that was replaced while the group waited
            await before[1].close()
        try:
            while True:
                message = await connection.receive()
                if isinstance(message, Ready):
                    self._ready.add(join.node)
                    self._changed.set()
                elif isinstance(message, Report):
                    self.report(message.cause)
                else:
                    raise BadMessage(f"a member sent {message.kind}")
        except (Gone, BadMessage) as error:
            if self._members.get(join.node) != (join, connection):
                return
            del self._members[join.node]
            self._changed.set()
            if not self._begun:
                log.warning("node left before the start", extra={"node": join.node, "why": str(error)})
            elif not connection.is_leaving:
                self._lose(join.node, str(error))

    def _lose(self, node: int, why: str) -> None:
        sentence = f"node {node} of {self._me.nodes} is lost: {why}"
        self._decide(Cause(kind="NodeLost", node=node, message=sentence))


def _listen(port: int) -> socket.socket:
    # Pods may have IPv4, IPv6 or both. In a container without IPv6, its socket can be created but not bound.
    try:
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    except (OSError, ValueError):
        pass
    try:
        return socket.create_server(("", port))
    except OSError as error:
        raise TrainerError(f"node 0 cannot listen on port {port} ({error.strerror}); free the port") from error
