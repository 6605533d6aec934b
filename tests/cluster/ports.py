"""Free ports for servers that need their port on the command line."""

from __future__ import annotations

import random
import socket

# Below the kernel's ephemeral range (from 32768): no outgoing connection takes a port before its server starts. Also
# below the ports that trainers on one node choose for themselves (from 20000), which are not reserved.
FIRST, LAST = 12000, 19999

# A port is reserved while an abstract socket with its name is bound. Other test processes see the reservation, and the
# kernel releases it when this process ends.
_reservations: list[socket.socket] = []


def free_ports(count: int) -> list[int]:
    """Reserve ports that no other caller gets, in this process or in another one on this machine."""
    ports: list[int] = []
    while len(ports) < count:
        port = random.randint(FIRST, LAST)
        if _reserve(port):
            ports.append(port)
    return ports


def free_rendezvous() -> int:
    """Reserve a port and the next one: a launcher's, and that of its ranks."""
    while True:
        port = random.randint(FIRST, LAST - 1)
        if _reserve(port) and _reserve(port + 1):
            return port


def _reserve(port: int) -> bool:
    reservation = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        reservation.bind(f"\0distillchain-port-{port}")
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.bind(("0.0.0.0", port))
    except OSError:
        reservation.close()
        return False
    _reservations.append(reservation)
    return True
