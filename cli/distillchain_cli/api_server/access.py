"""How a command reaches a cluster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

REQUEST_TIMEOUT_S = 15


@dataclass(frozen=True)
class Access:
    """What the options of a cluster command say about the connection. None and empty: not given.

    Attributes:
        request_timeout: seconds; 0: no limit.
    """

    namespace: str | None = None
    context: str | None = None
    kubeconfig: str | None = None
    request_timeout: int = REQUEST_TIMEOUT_S
    as_user: str | None = None
    as_groups: Sequence[str] = ()
