"""How much memory of a GPU is free."""

from __future__ import annotations

import torch


def free_bytes(device: torch.device) -> int:
    """Bytes that new tensors on a GPU can take.

    torch keeps the memory of tensors that are freed, such as those of a teacher, and the driver counts it as used.
    """
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free: int = torch.cuda.mem_get_info(device)[0]
    return free + kept
