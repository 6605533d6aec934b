"""Runs histories in a test."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from simulation.history import run
from simulation.plans import remembered_plans


def first_broken(seeds: Iterable[int], *, has_exports: bool = False) -> str | None:
    """The first history that breaks an invariant, and which; None if none does."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)  # thousands of refused requests are part of it
    try:
        with remembered_plans():
            return next(
                (f"seed {seed}: {broken}" for seed in seeds if (broken := run(seed, has_exports=has_exports))), None
            )
    finally:
        logging.disable(disabled)
