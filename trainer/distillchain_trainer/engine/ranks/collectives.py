"""The collectives that ranks compute with, over torch.distributed. Arrays of numpy travel by gloo, on the CPU."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

BUCKET_ELEMENTS = 16 * 2**20  # of one collective over many tensors; needs 64 MiB beside them
MAX_DIMENSIONS = 7  # of a gathered array, besides its rows


def any_of(flags: Sequence[bool]) -> tuple[bool, ...]:
    """For each flag, whether any rank has raised it. On the CPU, so that no GPU is waited for."""
    raised = torch.tensor(flags, dtype=torch.int32)
    dist.all_reduce(raised, op=dist.ReduceOp.MAX)
    return tuple(bool(flag) for flag in raised.tolist())


def largest(value: float) -> float:
    """The largest value of a rank."""
    found = torch.tensor(value, dtype=torch.float64)
    dist.all_reduce(found, op=dist.ReduceOp.MAX)
    return found.item()


def add_up(tensor: Tensor) -> None:
    """The sum over all ranks, in place."""
    dist.all_reduce(tensor)


def add_up_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """The sum of the gradients of all ranks, in place. A parameter without one on any rank gets none."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    # AdamW leaves a parameter that the loss does not reach as it is; with a gradient of zero it would decay.
    reached = any_of([parameter.grad is not None for parameter in trained])
    gradients = []
    for parameter, is_reached in zip(trained, reached, strict=True):
        if not is_reached:
            continue
        if parameter.grad is None:  # a rank without rows in this step
            parameter.grad = torch.zeros_like(parameter)
        gradients.append(parameter.grad)
    for bucket in _buckets(gradients):
        # One collective for many tensors: a model has hundreds of them, most of them small.
        flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
        dist.all_reduce(flat)
        _copy_into(bucket, flat)


def copy_from_main(tensors: Iterable[Tensor]) -> None:
    """Gives the tensors the values that they have on rank 0."""
    with torch.no_grad():
        for bucket in _buckets(tensors):
            if len(bucket) == 1 and bucket[0].is_contiguous():
                # Such as the embeddings of a large vocabulary, of which a second copy may not fit.
                dist.broadcast(bucket[0], src=0)
                continue
            flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
            dist.broadcast(flat, src=0)
            _copy_into(bucket, flat)


def gather(array: NDArray[Any]) -> list[NDArray[Any]]:
    """The arrays of all ranks. They may differ in their rows alone; a rank without rows need not know the rest."""
    shape = [array.ndim - 1, *array.shape[1:]]
    header = torch.tensor([len(array), *shape, *[0] * (MAX_DIMENSIONS + 1 - len(shape))])
    headers = [header.tolist() for header in _all_gather(header)]
    known = max(headers, key=lambda header: (header[0] > 0, header[1]))
    inner = known[2 : 2 + known[1]]
    # All ranks send equally many rows, because gloo cannot gather tensors of different sizes.
    sent = np.zeros((max(header[0] for header in headers), *inner), dtype=array.dtype)
    if len(array):
        sent[: len(array)] = array
    received = _all_gather(torch.from_numpy(sent)) if len(sent) else [torch.from_numpy(sent)] * len(headers)
    return [rows.numpy()[: header[0]] for rows, header in zip(received, headers, strict=True)]


def _all_gather(tensor: Tensor) -> list[Tensor]:
    received = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(received, tensor)
    return received


def _buckets(tensors: Iterable[Tensor]) -> Iterable[list[Tensor]]:
    """The tensors in groups of BUCKET_ELEMENTS or a little more, each of one type."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        if bucket and bucket[0].dtype != tensor.dtype:
            yield bucket
            bucket = []
        bucket.append(tensor)
        if sum(tensor.numel() for tensor in bucket) >= BUCKET_ELEMENTS:
            yield bucket
            bucket = []
    if bucket:
        yield bucket


def _copy_into(tensors: list[Tensor], flat: Tensor) -> None:
    for tensor, values in zip(tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(values.view_as(tensor))
