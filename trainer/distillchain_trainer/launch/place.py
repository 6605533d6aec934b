"""Where this process stands among the nodes of a stage, from the environment of its pod."""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Iterator
from dataclasses import dataclass

from distillchain_api.wire.work_order import NODE_ENV, RENDEZVOUS_ENV, WorkOrder
from distillchain_trainer.errors import WorkOrderInvalid

LOOPBACK = "127.0.0.1"
# Below the ports that Linux gives to outgoing connections (32768 and up): one of those could take a port before rank 0
# listens on it.
FREE_PORTS = range(20_000, 32_768)
TRIES = 100


@dataclass(frozen=True)
class Place:
    """One node among those of a stage.

    Attributes:
        host, port: where the launcher of node 0 listens; empty and 0 with one node.
    """

    node: int
    nodes: int
    processes: int
    host: str = ""
    port: int = 0


def read_place(order: WorkOrder) -> Place:
    """Raises: WorkOrderInvalid, if a variable of a stage on several nodes is missing or wrong."""
    nodes, processes = order.parallelism.nodes, order.parallelism.processes_per_node
    if nodes == 1:
        return Place(0, 1, processes)
    index = os.environ.get(NODE_ENV, "")
    if not (index.isdecimal() and int(index) < nodes):
        raise WorkOrderInvalid(
            f"environment variable {NODE_ENV}: got {index[:40]!r}, expected a number from 0 to {nodes - 1}, because "
            f"parallelism.nodes is {nodes}; the operator's Indexed Job sets it"
        )
    host, port = _address(os.environ.get(RENDEZVOUS_ENV, ""))
    return Place(int(index), nodes, processes, host, port)


def rank_variables(place: Place) -> Iterator[dict[str, str]]:
    """torch's standard variables for each rank of this node."""
    host, port = (place.host, place.port + 1) if place.nodes > 1 else (LOOPBACK, _free_port())
    for local_rank in range(place.processes):
        yield {
            "RANK": str(place.node * place.processes + local_rank),
            "LOCAL_RANK": str(local_rank),
            "WORLD_SIZE": str(place.nodes * place.processes),
            "LOCAL_WORLD_SIZE": str(place.processes),
            "MASTER_ADDR": host,
            "MASTER_PORT": str(port),
        }


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    # 65534, because the ranks use the port after it.
    if host and port.isdecimal() and 1 <= int(port) <= 65_534:
        return host.removeprefix("[").removesuffix("]"), int(port)
    raise WorkOrderInvalid(
        f"environment variable {RENDEZVOUS_ENV}: got {text[:100]!r}, expected host:port of node 0, with a port from 1 "
        "to 65534"
    )


def _free_port() -> int:
    for port in random.sample(FREE_PORTS, TRIES):  # not for secrets
        with socket.socket() as probe:
            try:
                probe.bind((LOOPBACK, port))
            except OSError:
                continue
            return port
    raise OSError(f"none of {TRIES} ports of {LOOPBACK} is free")
