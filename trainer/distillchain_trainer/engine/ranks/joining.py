"""Connects the processes of a stage: torch's store for messages, gloo for the CPU, NCCL for GPUs."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
import socket
import sys
import time
from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]  # documented, not in its __all__

from distillchain_trainer.engine.ranks.peers import LAST_POLL_S, POLL_S_PER_RANK, Peers
from distillchain_trainer.errors import LostPeers, NoGpu, PortTaken, WorkOrderInvalid
from distillchain_trainer.gpus import gpus_of_container

log = logging.getLogger(__name__)

# In a collective, a rank waits for one step of the slowest rank at most, the first with its compilation included:
# longer work is awaited in Peers. Also the default of NCCL.
COLLECTIVE_TIMEOUT = timedelta(minutes=10)
# Read by torch when a process group is created. They are defaults of recent versions of torch only.
FLIGHT_RECORDER = {
    "TORCH_FR_BUFFER_SIZE": "2000",  # collectives that are remembered
    "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
}


CONNECT_S = 5.0  # of one try to reach rank 0


def join(
    rank: int,
    size: int,
    local_rank: int,
    deferred: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
) -> Peers:
    """Waits for all processes and connects them. A signal interrupts the wait.

    Args:
        deferred: holds signals back while the processes connect, which all must do together.

    Raises: LostPeers when some do not come; WorkOrderInvalid when this pod has more processes than GPUs.
    """
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    per_node = int(os.environ["LOCAL_WORLD_SIZE"])
    _set_variables(one_node=per_node == size)
    backend = "gloo"
    if torch.cuda.is_available():
        backend = "cpu:gloo,cuda:nccl"
        check_gpus(per_node, found=torch.cuda.device_count())
        torch.cuda.set_device(local_rank)
    started_s = time.monotonic()
    try:
        store = _connect(host, port, rank, size)
        # A connection of its own: NCCL's threads use the other one, and a request blocks its connection.
        peers = Peers(PrefixStore("peers", store.clone()), rank, size)
        peers.meet(f"start at {host}:{port}", within_s=COLLECTIVE_TIMEOUT.total_seconds())
        with deferred():
            dist.init_process_group(
                backend, store=PrefixStore("group", store), rank=rank, world_size=size, timeout=COLLECTIVE_TIMEOUT
            )
    except (RuntimeError, TimeoutError) as error:
        raise LostPeers(
            f"lost the other processes of the stage: rank {rank} of {size}, start at {host}:{port}, after "
            f"{time.monotonic() - started_s:.0f} s"
        ) from error
    log.info("processes connected", extra={"processes": size, "backend": backend})
    return peers


def _set_variables(*, one_node: bool) -> None:
    """Those that torch reads when processes connect. The user's take precedence."""
    if one_node and sys.platform == "linux":
        # Nothing has to be reachable from outside of the node.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")
    for name, value in FLIGHT_RECORDER.items():
        os.environ.setdefault(name, value)


def _connect(host: str, port: int, rank: int, size: int) -> TCPStore:
    """The store for messages, which rank 0 serves. Raises: TimeoutError, PortTaken."""
    listener = _listen(host, port) if rank == 0 else None
    # torch waits as well, but no signal can interrupt it: a process that has to stop would wait for others that stopped
    # before they came.
    if listener is None:
        _wait_for_rank_0(host, port, pause_s=max(LAST_POLL_S, POLL_S_PER_RANK * size))
    return TCPStore(
        host,
        port,
        None,
        rank == 0,
        timeout=COLLECTIVE_TIMEOUT,
        wait_for_workers=False,
        master_listen_fd=listener,
    )


def check_gpus(processes: int, *, found: int) -> None:
    """Raises: WorkOrderInvalid when processes of a pod would have to share a GPU, which NCCL refuses.

    NoGpu when the container has enough, and torch does not see all of them.
    """
    stated = gpus_of_container()
    if found < processes <= stated:
        raise NoGpu(
            f"the container requests {stated} GPUs, but torch sees {found}; check the GPUs of the node (nvidia-smi), "
            "and request whole ones: torch sees several shares of a GPU as one GPU"
        )
    if found < processes:
        raise WorkOrderInvalid(
            f"parallelism.processesPerNode: got {processes}, but the pod has {found} GPU{'s' * (found != 1)}; expected "
            "one GPU for each process: lower processesPerNode, or raise the number of GPUs in resources"
        )


def _wait_for_rank_0(host: str, port: int, *, pause_s: float) -> None:
    """Returns when rank 0 listens. Raises: TimeoutError."""
    deadline = time.monotonic() + COLLECTIVE_TIMEOUT.total_seconds()
    while time.monotonic() < deadline:
        try:
            socket.create_connection((host, port), timeout=CONNECT_S).close()
        except OSError:  # it has not started yet, or its name is not in the DNS yet
            time.sleep(pause_s)
        else:
            return
    raise TimeoutError(f"rank 0 does not listen at {host}:{port}")


def _listen(host: str, port: int) -> int:
    """A socket for the store: on the loopback interface if all processes are on this node, else on all interfaces.

    Raises: PortTaken.
    """
    try:
        is_loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:  # a host name
        is_loopback = False
    try:
        if is_loopback:
            return socket.create_server((host, port)).detach()
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        return socket.create_server(("", port), family=family, dualstack_ipv6=both).detach()
    except OSError as error:
        raise PortTaken(
            f"port {port} of this node cannot be opened for the processes of the stage ({error.strerror}); with "
            "hostNetwork another program may use it: leave hostNetwork out, or stop that program"
        ) from error
