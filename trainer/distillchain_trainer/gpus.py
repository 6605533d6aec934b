"""Whether torch can use the GPUs that the container asks for."""

from __future__ import annotations

import os

from distillchain_api.wire.work_order import ALLOW_CPU_ENV, GPUS_ENV
from distillchain_trainer.errors import NoGpu, WorkOrderInvalid, first_line


def gpus_of_container() -> int:
    """GPUs that the container asks for, as the operator states them; 0: none, or not known."""
    stated = os.environ.get(GPUS_ENV, "")
    return int(stated) if stated.isdecimal() else 0


def check_gpus_are_seen() -> None:
    """Raises: NoGpu when torch would compute on the CPU while the container has GPUs; WorkOrderInvalid."""
    allowed = os.environ.get(ALLOW_CPU_ENV, "")
    if allowed not in ("", "0", "1"):
        raise WorkOrderInvalid(f"{ALLOW_CPU_ENV}: got {allowed!r}, expected 0 or 1")
    wanted = gpus_of_container()
    if not wanted or allowed == "1":
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
        f"the container requests {wanted} GPU{'s' * (wanted > 1)}, but torch sees none (torch {torch.__version__}: "
        f"{why}); check the image, and the driver and the device plugin of the node. To train on the CPU, set "
        f"{ALLOW_CPU_ENV}=1 in the container trainer of spec.template.pod"
    )
