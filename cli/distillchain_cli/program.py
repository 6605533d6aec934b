"""What this program is called by its user: `distillchain`, or `kubectl distillchain` where kubectl starts it."""

from __future__ import annotations

import sys
from pathlib import Path

PROGRAM = "distillchain"
PLUGIN = "kubectl distillchain"
COMPLETE_VARIABLE = "_DISTILLCHAIN_COMPLETE"
"""Under which the completion script of a shell asks; one for both names."""


def program() -> str:
    """As it was started; help, examples and remedies name it so."""
    return PLUGIN if Path(sys.argv[0]).name.startswith("kubectl-") else PROGRAM
