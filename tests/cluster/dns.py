"""The DNS of a node's cluster: the names of pods behind headless Services, and no others.

The Endpoints controller of the control plane decides which pods a Service has; this server only answers from its
EndpointSlices, as CoreDNS does. Pods ask it because the kubelet gives them the gateway as their name server.
"""

from __future__ import annotations

import socketserver
import struct
import threading
import time
from ipaddress import IPv4Address
from typing import Any

from cluster.controlplane import ControlPlane
from cluster.serving import Serving

DOMAIN = "svc.cluster.local"
PORT = 53
FRESH_S = 1.0  # how long a list of EndpointSlices is used: each costs a tenth of a second of CPU
TYPE_A, NO_SUCH_NAME, ANSWER = 1, 3, 0x8400


class ClusterDNS(Serving):
    """A DNS server on `address`, stopped when the `with` block ends."""

    def __init__(self, control_plane: ControlPlane, address: str, *, port: int = PORT) -> None:
        self._control_plane = control_plane
        self._names: dict[str, str] = {}
        self._read_at = 0.0
        self._lock = threading.Lock()
        dns = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                query, sender = self.request
                sender.sendto(answer(query, dns.names()), self.client_address)

        super().__init__(socketserver.ThreadingUDPServer((address, port), Handler))

    def names(self) -> dict[str, str]:
        """Every name, with its address."""
        with self._lock:
            if time.monotonic() - self._read_at > FRESH_S:
                self._names = names_of(self._control_plane.get("endpointslices", "--all-namespaces")["items"])
                self._read_at = time.monotonic()
            return self._names


def names_of(slices: list[dict[str, Any]]) -> dict[str, str]:
    """`<hostname>.<service>.<namespace>.svc.cluster.local` -> address, for each endpoint with a host name."""
    names = {}
    for document in slices:
        service = document["metadata"].get("labels", {}).get("kubernetes.io/service-name")
        for endpoint in document.get("endpoints") or []:
            # Ready is also true for all pods of a Service with publishNotReadyAddresses.
            if service and endpoint.get("hostname") and endpoint["conditions"].get("ready"):
                name = f"{endpoint['hostname']}.{service}.{document['metadata']['namespace']}.{DOMAIN}"
                names[name] = endpoint["addresses"][0]
    return names


def answer(query: bytes, names: dict[str, str]) -> bytes:
    """The response to a query with one question (RFC 1035, section 4)."""
    labels, position = [], 12
    while length := query[position]:
        labels.append(query[position + 1 : position + 1 + length].decode())
        position += 1 + length
    question = query[12 : position + 5]
    (kind,) = struct.unpack_from("!H", query, position + 1)
    address = names.get(".".join(labels).lower())
    record = b""
    if address and kind == TYPE_A:  # to AAAA: the name exists, without such an address
        record = struct.pack("!HHHIH", 0xC00C, TYPE_A, 1, 1, 4) + IPv4Address(address).packed
    flags = ANSWER | (query[2] & 1) << 8 | (0 if address else NO_SUCH_NAME)
    return query[:2] + struct.pack("!HHHHH", flags, 1, bool(record), 0, 0) + question + record
