"""The nodes that train one stage, and the cause that they all end for: what both sides of a group have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from distillchain_trainer.launch.causes import Cause

LOG_EVERY_S = 15.0  # while nodes are waited for
LEAVE_S = 10.0  # for the other side to read what was sent
# A rank that lost another one ends at once, but the one that failed may take a while: a core dump, the notice that a
# machine is gone.
PEERS_LOST_S = 35.0

Announce = Callable[[Cause], None]


class Group(Protocol):
    """One node's view of the group."""

    async def form(self) -> str:
        """Waits until all nodes have joined. Returns: the attempt, the same for all nodes."""
        ...

    async def form_again(self) -> str:
        """Waits until the ranks of all nodes have ended after memory was short. Returns: another attempt."""
        ...

    def report(self, cause: Cause) -> None:
        """Something happened on this node. The cause that counts for all is announced, perhaps another one."""
        ...

    def settle(self) -> None:
        """All ranks of this node have ended."""
        ...

    async def leave(self) -> None:
        """Says farewell to the other nodes."""
        ...
