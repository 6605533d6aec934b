"""Imports what a stage needs before it may start: `distillchain run` does so while the stage before it trains."""

from __future__ import annotations

import importlib
import os
from pathlib import Path

from distillchain_api.wire.work_order import WORK_DIRECTORY_ENV, WORK_ORDER_ENV, WorkOrder
from distillchain_trainer.launch.environment import set_up_environment
from distillchain_trainer.stage_warnings import StageWarnings
from distillchain_trainer.tasks import adapter_for


def import_libraries() -> None:
    """Imports the modules of the stage that the environment names. Computes nothing and touches no GPU."""
    variables = dict(os.environ)
    order = WorkOrder.parse(os.environ[WORK_ORDER_ENV])
    # torch reads its variables once, when it is imported.
    set_up_environment(Path(os.environ[WORK_DIRECTORY_ENV]), StageWarnings())
    for name in ("commit", "compute", "prepare"):
        importlib.import_module(f"distillchain_trainer.stage.{name}")
    adapter_for(order.task, StageWarnings())
    # As they were: the stage checks them itself, and then reports what it ignores.
    os.environ.clear()
    os.environ.update(variables)
