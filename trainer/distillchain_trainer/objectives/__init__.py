"""The objectives: one loss between student and teacher per file. A file defines NAME and OBJECTIVE.

After adding a file, `make generate` writes its name into distillchain_api/objectives.py, from where the CRD and
`validate` know it.
"""

from __future__ import annotations

import ast
import importlib
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distillchain_trainer.objectives.objective import Objective


def objective_modules() -> dict[str, str]:
    """Module names by the objective's name in the spec. Files are parsed, not imported: no torch is loaded."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("*.py")):
        for statement in ast.parse(path.read_text(encoding="utf-8")).body:
            # NAME must be a literal: a value that is computed cannot be read without an import.
            match statement:
                case ast.Assign(targets=[ast.Name("NAME")], value=ast.Constant(str(name))):
                    found[name] = path.stem
    return found


def load_objective(name: str) -> Objective:
    """The objective of that name, which the contract has checked."""
    objective: Objective = importlib.import_module(f"{__name__}.{objective_modules()[name]}").OBJECTIVE
    return objective
