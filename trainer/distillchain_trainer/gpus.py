"""Whether torch can use the GPUs that the container asks for."""

from __future__ import annotations

import os

from distillchain_api.wire.work_order import ALLOW_CPU_ENV, GPUS_ENV
from distillchain_trainer.errors import NoGpu, first_line


def check_gpus_are_seen() -> None:
    """Raises: NoGpu when torch would compute on the CPU while the GPUs of the container stand idle."""
    wanted = int(os.environ.get(GPUS_ENV) or 0)
    if not wanted or os.environ.get(ALLOW_CPU_ENV) == "1":
        return
    import torch

    if torch.cuda.is_available():
        return
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        why = "no reason is known"
    except Exception as error:  # torch raises errors of several classes
        why = first_line(error).rstrip(".")
    raise NoGpu(
        f"the container has {wanted} GPU{'s' * (wanted > 1)} by its resources, and torch {torch.__version__} sees none "
        f"({why}); the stage would run on the CPU, and the GPU would stand idle. Check driver and device plugin of the "
        f"node. To train on the CPU all the same, set {ALLOW_CPU_ENV}=1 in the container trainer of spec.template.pod"
    )
