"""Arrays in files that are mapped into memory: they take disk and page cache, which the system can free at any time.

A mapped file is shared by all processes of a node. Knows neither rows nor tokens.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

Number = TypeVar("Number", bound=np.generic)


class ArrayFile(Generic[Number]):
    """Writes an array that grows along its first axis; append large blocks.

    Args:
        inner: the shape of one element; () for a plain list of numbers.
    """

    def __init__(self, path: Path, dtype: type[Number], inner: tuple[int, ...] = ()) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path, self._dtype, self._inner = path, dtype, inner
        # A new file and not an emptied one, which would end a process that has mapped it.
        path.unlink(missing_ok=True)
        path.touch()
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def append(self, values: NDArray[Any] | Sequence[Any]) -> None:
        """Adds elements at the end."""
        array = np.ascontiguousarray(values, dtype=self._dtype).reshape(-1, *self._inner)
        # Opened for each block, so that a reader that gives up at a faulty row leaves no file open.
        with self._path.open("ab") as file:
            file.write(array.tobytes())
        self._size += len(array)

    def finish(self) -> NDArray[Number]:
        """The whole array, mapped."""
        return map_array(self._path, self._dtype, self._inner)


def map_array(path: Path, dtype: type[Number], inner: tuple[int, ...] = ()) -> NDArray[Number]:
    """An array that ArrayFile wrote. Changes to it are not written to the file."""
    if not path.stat().st_size:  # an empty file cannot be mapped
        return np.zeros((0, *inner), dtype=dtype)
    # Copy on write and not read-only: torch warns of arrays that it could not write to.
    flat: NDArray[Number] = np.memmap(path, dtype=dtype, mode="c")
    # A plain array over the same memory: numpy's class for mapped arrays makes every access slower.
    return flat.view(np.ndarray).reshape(-1, *inner)


def shared_array(path: Path, dtype: type[Number], shape: tuple[int, ...]) -> NDArray[Number]:
    """A writable array in a file, zero where nobody has written. Processes that open the same path share it."""
    count = int(np.prod(shape, dtype=np.int64))
    if not count:
        return np.zeros(shape, dtype=dtype)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        # Reserved now: a disk that is full later would end the process with a bus error in place of a message.
        os.posix_fallocate(descriptor, 0, count * np.dtype(dtype).itemsize)
    finally:
        os.close(descriptor)
    flat: NDArray[Number] = np.memmap(path, dtype=dtype, mode="r+", shape=(count,))
    return flat.view(np.ndarray).reshape(shape)
