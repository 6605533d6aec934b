"""Why the ranks of a stage end: pure rules for which cause counts and for how each node ends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from distillchain_api.base import Document
from distillchain_api.failures import FailureClass
from distillchain_api.wire.answer import Committed, Failed, Interrupted
from distillchain_api.wire.work_order import WorkOrder
from distillchain_trainer.launch.ending import CRASH_EXIT_CODE, Ending, committed, failure, interrupted

CauseKind = Literal["PeersLost", "MemoryShort", "Stopped", "Failed", "NodeLost", "Committed"]

# If the collective of a rank failed, another rank has probably ended: why that one ended counts. After short memory all
# ranks start again, but not if they have to stop. A stage that is committed stays committed.
_STRENGTH: dict[CauseKind, int] = {
    "PeersLost": 0,
    "MemoryShort": 1,
    "Stopped": 2,
    "Failed": 3,
    "NodeLost": 3,
    "Committed": 4,
}
# Failures of a machine, not of the input: it matters which rank had them.
_OF_ONE_RANK = (FailureClass.CRASHED, FailureClass.OUT_OF_MEMORY, FailureClass.DISK_FULL)


class Cause(Document):
    """Why all ranks of all nodes end."""

    kind: CauseKind
    node: int
    """Where it happened."""
    rank: int | None = None
    """Of a failure."""
    message: str = ""
    answer: Committed | None = None
    """Of a committed stage."""
    smaller_rows: int | None = None
    """Of MemoryShort: rows of the micro-batch with which all ranks start again."""

    @property
    def is_failure(self) -> bool:
        """Whether something went wrong."""
        return self.kind in ("PeersLost", "Failed", "NodeLost")


def is_stronger(cause: Cause, than: Cause | None) -> bool:
    """Whether a cause replaces another. Of equal causes the first stays."""
    return than is None or _STRENGTH[cause.kind] > _STRENGTH[than.kind]


def cause_of(node: int, rank: int, ending: Ending) -> Cause | None:
    """What the end of a rank means for all others; None: they continue."""
    answer = ending.answer
    if isinstance(answer, Failed):
        if ending.smaller_rows is not None:
            message, rows = _of_rank(rank, answer), ending.smaller_rows
            return Cause(kind="MemoryShort", node=node, rank=rank, message=message, smaller_rows=rows)
        return Cause(kind="Failed", node=node, rank=rank, message=_of_rank(rank, answer))
    if ending.peers_lost:
        return Cause(kind="PeersLost", node=node, rank=rank, message=f"rank {rank}: {ending.peers_lost}")
    if isinstance(answer, Interrupted):
        return Cause(kind="Stopped", node=node)
    # Rank 0 commits. The others may end before it, when they have no part in what is left to do.
    return Cause(kind="Committed", node=node, rank=rank, answer=answer) if rank == 0 else None


def node_ending(
    order: WorkOrder, node: int, ends: Mapping[int, Ending], *, own: Cause | None, group: Cause | None
) -> Ending:
    """How a node ends. If a rank failed, its node alone reports that, so that it costs one retry.

    Args:
        ends: of the ranks of this node.
        own: the strongest cause on this node.
        group: the cause that all nodes end for; None: it could not be learned.
    """
    for cause in (own, group):
        if cause is not None and cause.answer is not None:
            return committed(cause.answer)
    if own is not None and own.is_failure and _is_reported_here(own, group, node):
        assert own.rank is not None
        return _failure(order, own, ends[own.rank])
    step = max((end.answer.step for end in ends.values() if isinstance(end.answer, Interrupted)), default=0)
    if group is None or not group.is_failure:
        return interrupted(order, step)
    return interrupted(order, step, why=f"node {group.node}: {group.message}")


def _is_reported_here(own: Cause, group: Cause | None, node: int) -> bool:
    return group is None or is_stronger(own, group) or (group.is_failure and group.node == node)


def _failure(order: WorkOrder, own: Cause, end: Ending) -> Ending:
    if isinstance(end.answer, Failed):
        return failure(order, end.answer.failure_class, own.message, end.exit_code)
    sentence = f"{own.message}; no rank failed by itself: one of them hung, or the network between them failed"
    return failure(order, FailureClass.CRASHED, sentence, CRASH_EXIT_CODE)


def _of_rank(rank: int, answer: Failed) -> str:
    return f"rank {rank}: {answer.message}" if answer.failure_class in _OF_ONE_RANK else answer.message
