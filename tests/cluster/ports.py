"""Ports for servers that must be told their port before they start."""

from __future__ import annotations

import random
import socket

# Under the kernel's ephemeral range (32768 up): no outgoing connection takes a port between our choice and its use.
FIRST, LAST = 20000, 29999

# A port is ours while an abstract socket of its name is bound: other test processes see it, and it falls with us.
_claims: list[socket.socket] = []


def free_ports(count: int) -> list[int]:
    """Ports of which no other caller on this machine, in this process or another, is given one too."""
    ports: list[int] = []
    while len(ports) < count:
        port = random.randint(FIRST, LAST)
        if _claim(port):
            ports.append(port)
    return ports


def _claim(port: int) -> bool:
    claim = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        claim.bind(f"\0distillchain-port-{port}")
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.bind(("0.0.0.0", port))
    except OSError:
        claim.close()
        return False
    _claims.append(claim)
    return True
