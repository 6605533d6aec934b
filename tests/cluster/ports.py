"""Free ports for servers that need their port on the command line."""

from __future__ import annotations

import random
import socket

# Below the kernel's ephemeral range (from 32768): no outgoing connection takes a port before its server starts.
FIRST, LAST = 20000, 29999

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
