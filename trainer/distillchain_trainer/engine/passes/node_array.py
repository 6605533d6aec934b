"""An array in a file that all processes of a node map: they share its memory, which the system can free at any time.

The first rank of each node writes to it. Ranks of one node see what is written at once, so they only have to wait.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from distillchain_trainer.data.array_file import shared_array
from distillchain_trainer.engine.ranks.world import World

Array = NDArray[np.float32]


@dataclass(frozen=True)
class NodeArray:
    """The file of this rank's node.

    Attributes:
        path: in a folder that the processes of the node share.
    """

    path: Path
    world: World

    def create(self, shape: tuple[int, ...]) -> Array:
        """A new file full of zeros. For the first rank of a node alone."""
        # A new file and not an emptied one, which would end a process that has mapped it.
        self.path.unlink(missing_ok=True)
        return shared_array(self.path, np.float32, shape)

    def shared(self, shape: tuple[int, ...], *, created: Array | None = None) -> Array:
        """The array, on all ranks, which call it together.

        Args:
            created: from `create`, where this rank has called it already.
        """
        if created is None and self.world.leads_node:
            created = self.create(shape)
        self.world.meet("file of the teacher's outputs")
        return shared_array(self.path, np.float32, shape) if created is None else created


def copy_to_nodes(world: World, array: NDArray[np.generic], blocks: Iterator[NDArray[np.int64]]) -> None:
    """Copies rows of rank 0's array to the arrays of the other nodes. All ranks call it.

    Args:
        blocks: numbers of the rows, the same on all ranks. One block is in memory at a time.
    """
    (are_several,) = world.any(world.leads_node and not world.is_main)
    if not are_several:
        return
    for rows in blocks:
        # A copy: the other ranks of a node must not write to its file, but they take part in the collective.
        part = torch.from_numpy(array[rows])
        world.copy_from_main([part])
        if world.leads_node and not world.is_main:
            array[rows] = part.numpy()
