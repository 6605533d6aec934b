"""Which epoch's weights a training ends with: fields of `training`, and the rule between them.

`patience` without `selection: Best` is refused. It would either commit the epochs that did not improve, or choose
silently, and only `selection` should say which weights are committed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Literal, Protocol

from pydantic import Field

from distillchain_api.cel import cel
from distillchain_api.faults import Expect, Fault, expected

Selection = Literal["Last", "Best"]
Patience = Annotated[
    int, Field(ge=0, le=1_000_000), Expect("a whole number of epochs from 0 to 1000000", "0 trains all epochs")
]


class SelectionFields(Protocol):
    """The fields as template, stage and `fineTune` have them; None: not stated."""

    @property
    def selection(self) -> Selection | None:
        """Which epoch is committed."""

    @property
    def patience(self) -> int | None:
        """Epochs without improvement that end the training."""


def selection_faults(template: SelectionFields, overrides: Mapping[str, SelectionFields]) -> Iterator[Fault]:
    """Patience where no epoch is chosen. Fields are relative to the spec.

    Args:
        overrides: what stages and `fineTune` state, by their place, such as `stages[0].training`.
    """
    for place, fields in {"template.training": template, **overrides}.items():
        selection = fields.selection or template.selection
        patience = template.patience if fields.patience is None else fields.patience
        if not patience or selection == "Best":
            continue
        if fields.patience is not None:
            remedy = "write selection: Best, or remove patience"
            yield Fault(f"{place}.patience", expected(patience, "0 with selection: Last", remedy))
        elif fields.selection is not None:
            beside = f"Best with the template's patience of {patience}"
            yield Fault(f"{place}.selection", expected("Last", beside, "write patience: 0 to train all epochs"))


def _rule(place: str, *, own: str, template: str, field_path: str) -> dict[str, str]:
    """The rule for one block of training values, which `own` names within the rule.

    Args:
        place: the whole condition around that of the block, with `RULE` for it.
    """
    stated = f"has(self.template) && has({template}) && has({template}"
    patience = f"(has({own}.patience) ? {own}.patience : ({stated}.patience) ? {template}.patience : 0))"
    selection = f"(has({own}.selection) ? {own}.selection : ({stated}.selection) ? {template}.selection : 'Last'))"
    fits = f"(!has({own}.patience) && !has({own}.selection)) || {patience} == 0 || {selection} == 'Best'"
    return cel(
        place.replace("RULE", fits),
        "patience: expected 0 with selection: Last; write selection: Best, or patience: 0",
        fieldPath=field_path,
    )


SELECTION_RULES = [
    _rule(
        "!has(self.teacher.fineTune) || RULE",
        own="self.teacher.fineTune",
        template="self.template.training",
        field_path=".teacher.fineTune",
    ),
    _rule(
        "self.stages.all(stage, !has(stage.training) || RULE)",
        own="stage.training",
        template="self.template.training",
        field_path=".stages",
    ),
]
"""For ChainSpec."""
PATIENCE_RULE = cel(
    "!has(self.patience) || self.patience == 0 || (has(self.selection) && self.selection == 'Best')",
    "patience: expected 0 with selection: Last; write selection: Best, or remove patience",
    fieldPath=".patience",
)
"""For Training of the template."""
