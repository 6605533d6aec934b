"""Puts a model that is not trained where its passes compute."""

from __future__ import annotations

from typing import Any

from distillchain_trainer.engine.device.precision import best_device, keep_products_in_bfloat16
from distillchain_trainer.engine.device.sharding import shard
from distillchain_trainer.stage.context import Context


def place_for_passes(context: Context, model: Any) -> None:
    """Moves a model to the device, or splits it over the devices of all ranks, in the types of its passes.

    Teachers and measured students alike, so that their rates and latencies can be compared.

    Args:
        model: on the host, in float32.
    Raises: CheckpointInvalid for a model that cannot be split.
    """
    keep_products_in_bfloat16(model, context.order.training.precision)
    if context.is_sharded:
        # FSDP2 refuses weights of different types only where they are trained.
        model.requires_grad_(requires_grad=False)
        shard(model, context.world, device=best_device())
    else:
        model.to(best_device())
