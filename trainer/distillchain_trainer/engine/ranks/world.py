"""The processes that train one stage together, and what they have to agree on.

Every rank runs the same code on its share of the rows. With one process, everything here costs nothing and does
nothing. Collectives must be called by all ranks in the same order, or they wait for each other until the timeout.
Imports no torch before there are several processes: a stage that is committed already is adopted without it.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from distillchain_trainer.engine.ranks.peers import Peers
from distillchain_trainer.errors import LostPeers, StopRequested, is_peer_failure

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor
    from torch.nn import Parameter


Order = TypeVar("Order", "list[int]", "NDArray[np.int64]")
"""Numbers of rows in some order; of many rows in an array, which takes eight bytes for each and not forty."""


@dataclass(frozen=True)
class World:
    """The processes of a stage, seen from one of them.

    Attributes:
        rank: number of this process, from 0.
        size: how many processes there are.
        local_rank: number of this process on its node: the GPU that it uses.
        peers: None for one process.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    peers: Peers | None = field(default=None, repr=False, compare=False)

    @property
    def is_alone(self) -> bool:
        """Whether one process trains the stage."""
        return self.size == 1

    @property
    def is_main(self) -> bool:
        """Whether this is the process that talks to the store and to the user."""
        return self.rank == 0

    @property
    def leads_node(self) -> bool:
        """Whether this is the process that fetches files for all processes of its node."""
        return self.local_rank == 0

    def share(self, rows: Sequence[int]) -> list[int]:
        """This rank's part of some rows. Sizes differ by one at most; a part is empty if there are too few rows."""
        start, end = (len(rows) * (self.rank + side) // self.size for side in (0, 1))
        return list(rows[start:end])

    def deal(self, rows: Order) -> Order:
        """Every n-th of some rows: of rows that are sorted by length, each rank gets as many long ones."""
        return rows[self.rank :: self.size]

    def meet(self, what: str) -> None:
        """Returns when all ranks are here. Without a limit: one rank may upload meanwhile.

        Call it before a collective that follows work which may fail on one rank: the failure of another rank raises
        here, while a collective would wait for it.

        Args:
            what: the phase, for the message.
        Raises: LostPeers.
        """
        if self.peers is not None:
            self.peers.meet(what)

    def from_main(self, build: Callable[[], str], what: str) -> str:
        """The document that `build` returns on rank 0. Raises: LostPeers."""
        return build() if self.peers is None else self.peers.document_of(0, build, what)

    def from_leader(self, build: Callable[[], str], what: str) -> str:
        """The document that `build` returns on the first rank of each node. Raises: LostPeers."""
        leader = self.rank - self.local_rank
        return build() if self.peers is None else self.peers.document_of(leader, build, what)

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """For each flag, whether any rank has raised it. On the CPU, so a GPU is not waited for."""
        if self.is_alone:
            return flags
        from distillchain_trainer.engine.ranks import collectives

        with self.collective("agreement"):
            return collectives.any_of(flags)

    def longest(self, elapsed_s: float) -> float:
        """The longest of the times of all ranks."""
        if self.is_alone:
            return elapsed_s
        from distillchain_trainer.engine.ranks import collectives

        with self.collective("comparison of times"):
            return collectives.largest(elapsed_s)

    def add_up(self, tensor: Tensor) -> Tensor:
        """The sum over all ranks, in place."""
        if not self.is_alone:
            from distillchain_trainer.engine.ranks import collectives

            with self.collective("sum"):
                collectives.add_up(tensor)
        return tensor

    def add_up_gradients(self, parameters: Iterable[Parameter]) -> None:
        """Sums the gradients of all ranks in place.

        Not DistributedDataParallel, which starts its collectives during the backward pass: a rank that runs out of
        memory there would leave the others waiting. Here all ranks first agree that every one of them has finished.
        """
        if not self.is_alone:
            from distillchain_trainer.engine.ranks import collectives

            with self.collective("sum of gradients"):
                collectives.add_up_gradients(parameters)

    def copy_from_main(self, tensors: Iterable[Tensor]) -> None:
        """Gives the tensors the values that they have on rank 0."""
        if not self.is_alone:
            from distillchain_trainer.engine.ranks import collectives

            with self.collective("copy of weights"):
                collectives.copy_from_main(tensors)

    def gather(self, array: NDArray[Any]) -> list[NDArray[Any]]:
        """The arrays of all ranks, on every rank. They may have different numbers of rows."""
        if self.is_alone:
            return [array]
        from distillchain_trainer.engine.ranks import collectives

        with self.collective("exchange of outputs"):
            return collectives.gather(array)

    @contextlib.contextmanager
    def collective(self, what: str, *, is_whole_stage: bool = False) -> Iterator[None]:
        """Within the block, a collective that fails raises LostPeers, which names it.

        Args:
            is_whole_stage: the time since the start of the block says nothing.
        """
        started_s = None if is_whole_stage else time.monotonic()
        try:
            yield
        except RuntimeError as error:
            # Other errors are faults of this process, such as short memory.
            if self.peers is None or not is_peer_failure(error):
                raise
            raise self.peers.lost(what, started_s) from error

    @contextlib.contextmanager
    def membership(
        self, deferred: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext
    ) -> Iterator[None]:
        """The whole stage: an error that ends this rank is reported to the others, which then end too.

        Args:
            deferred: holds signals back while this rank leaves, or they would replace its answer.
        """
        if self.peers is None:
            yield
            return
        try:
            # A model that is split starts collectives by itself.
            with self.collective("a pass of the model", is_whole_stage=True):
                yield
        except BaseException as error:
            with deferred():
                _leave_after(error, self.peers)
            raise
        with deferred():
            self.peers.leave()


def _leave_after(error: BaseException, peers: Peers) -> None:
    if isinstance(error, LostPeers):
        # Without a report a rank was killed, and would never answer.
        if peers.has_report():
            peers.leave()
        return
    peers.fail(str(error) if isinstance(error, StopRequested) else f"{type(error).__name__}: {error}")
    peers.leave()


ALONE = World()


def join_world(
    deferred: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
) -> World:
    """The processes of this stage by the variables of torch's launcher, once all have come. Raises: LostPeers.

    Args:
        deferred: see `join`. A signal that came meanwhile is not raised.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return ALONE
    # Read once, when torch is loaded. Its C++ code reports a lost process with a stack trace for every request.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from distillchain_trainer.engine.ranks.joining import join

    rank, local_rank = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    return World(rank, size, local_rank, join(rank, size, local_rank, deferred))
