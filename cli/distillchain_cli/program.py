"""The name under which this program was started: `distillchain`, or `kubectl distillchain` as kubectl's plugin."""

from __future__ import annotations

import sys
from pathlib import Path

PROGRAM = "distillchain"
PLUGIN = "kubectl distillchain"
COMPLETE_VARIABLE = "_DISTILLCHAIN_COMPLETE"
"""Environment variable by which a shell's completion script asks for candidates; the same for both names."""


def program_name() -> str:
    """The name to use in help, examples and remedies."""
    return PLUGIN if Path(sys.argv[0]).name.startswith("kubectl-") else PROGRAM
