"""The objectives: one loss between student and teacher per file. A file defines NAME and OBJECTIVE.

Files are found by name and parsed, not imported, so that no torch is loaded. After adding a file, `make generate`
writes what it declares into distillchain_api/objectives.py, from where the CRD and `validate` know it.
"""

from __future__ import annotations

import ast
import functools
import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distillchain_trainer.objectives.objective import Objective

OUTPUT_KINDS = ("Classes", "Labels", "Numbers", "Tokens")
"""What a task's outputs can be; see Task.outputs."""


@dataclass(frozen=True)
class Parameter:
    """A number that one objective has, `distillation.parameters.<name>` in the spec.

    Attributes:
        default: its value where the spec states none.
        above: exclusive lower bound.
        at_least: inclusive lower bound.
        below: exclusive upper bound.
        at_most: inclusive upper bound.
    """

    description: str
    default: float
    above: float | None = None
    at_least: float | None = None
    below: float | None = None
    at_most: float | None = None


@dataclass(frozen=True)
class ObjectiveFile:
    """What an objective's file declares, all of it as literals.

    Attributes:
        name: NAME, the value of `distillation.objective`.
        module: name of the file.
        outputs: OUTPUTS, the kinds of outputs that it can compare; all if the file does not say.
        uses_temperature: USES_TEMPERATURE; True if the file does not say.
        parameters: PARAMETERS, by their name in the spec.
    """

    name: str
    module: str
    outputs: tuple[str, ...] = OUTPUT_KINDS
    uses_temperature: bool = True
    parameters: Mapping[str, Parameter] = field(default_factory=dict)

    @classmethod
    def of(cls, module: str, declared: Mapping[str, Any]) -> ObjectiveFile:
        """From the literals of a file. Raises: TypeError for an unknown key of a parameter."""
        parameters = {name: Parameter(**facts) for name, facts in declared.get("PARAMETERS", {}).items()}
        outputs = tuple(declared.get("OUTPUTS", OUTPUT_KINDS))
        return cls(declared["NAME"], module, outputs, declared.get("USES_TEMPERATURE", True), parameters)


DECLARED = frozenset({"NAME", "OUTPUTS", "USES_TEMPERATURE", "PARAMETERS"})


@functools.cache
def objective_files() -> dict[str, ObjectiveFile]:
    """What each file of this package declares, by the objective's name in the spec."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("*.py")):
        declared = {}
        for statement in ast.parse(path.read_text(encoding="utf-8")).body:
            match statement:
                case ast.Assign(targets=[ast.Name(name)], value=value) if name in DECLARED:
                    # Literals only: a value that is computed cannot be read without an import.
                    declared[name] = ast.literal_eval(value)
        # This module and objective.py define no NAME.
        if isinstance(declared.get("NAME"), str):
            found[declared["NAME"]] = ObjectiveFile.of(path.stem, declared)
    return found


def load_objective(name: str) -> Objective:
    """The objective of that name, which the contract has checked."""
    module = importlib.import_module(f"{__name__}.{objective_files()[name].module}")
    objective: Objective = module.OBJECTIVE
    return objective
