"""Classes by name: cells of a label column, and the id2label of checkpoints, to the order of `task.labels`. Pure."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass

from distillchain_trainer.errors import LabelMismatch

log = logging.getLogger(__name__)


class UnknownLabel(ValueError):
    """A cell that names no class; its reader says where."""


class LabelReader:
    """Cells of a label column to class indices.

    A name wins over a number. A whole number from 0 is a place in the order of the labels, unless the labels
    themselves look like numbers: then "4", 4 and 4.0 are all the class named 4.
    """

    def __init__(self, labels: Sequence[str]) -> None:
        self._labels = list(labels)
        self._numeric = {number: i for i, name in enumerate(labels) if (number := _number(name)) is not None}
        self._known: dict[tuple[type, object], int] = {}

    def index_of(self, cell: object) -> int:
        """The class of a cell. Raises: UnknownLabel, with what was expected."""
        key = (type(cell), cell)
        if key not in self._known:
            self._known[key] = self._find(cell)
        return self._known[key]

    def _find(self, cell: object) -> int:
        if isinstance(cell, str):
            found = find_name(cell.strip(), self._labels)
            if found is not None:
                return found
        elif isinstance(cell, bool):
            found = find_name(str(cell), self._labels)
            if found is not None:
                return found
            raise UnknownLabel(self._expectation())
        number = _number(cell)
        if number is not None and self._numeric:
            if number in self._numeric:
                return self._numeric[number]
        elif number is not None and number.is_integer() and 0 <= number < len(self._labels):
            return int(number)
        raise UnknownLabel(self._expectation())

    def _expectation(self) -> str:
        names = ", ".join(self._labels)
        by_number = "" if self._numeric else f", or a number from 0 to {len(self._labels) - 1} in that order"
        return f"expected one of {names}{by_number}"


def find_name(name: str, labels: Sequence[str]) -> int | None:
    """Index of `name` among the labels: as written, else the only one that differs in case alone."""
    if name in labels:
        return list(labels).index(name)
    alike = [i for i, label in enumerate(labels) if label.casefold() == name.casefold()]
    return alike[0] if len(alike) == 1 else None


def _number(value: object) -> float | None:
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, str) and not re.fullmatch(r"\s*[-+]?\d+(\.\d*)?\s*", value):
        return None  # float() would also read "nan", "inf" and "1_0"
    try:
        number = float(value)  # type: ignore[arg-type]  # whatever a column holds
    except (TypeError, ValueError, OverflowError):
        return None
    return number if number == number else None


@dataclass(frozen=True)
class ClassOrder:
    """How a checkpoint's classes lie to the task's.

    Attributes:
        columns: `columns[i]` is the checkpoint's class of `task.labels[i]`.
        named: False for the default names LABEL_0.., whose order must first prove itself by measuring.
    """

    columns: tuple[int, ...]
    named: bool

    @property
    def turned(self) -> bool:
        """The checkpoint's order is another than the task's."""
        return self.columns != tuple(range(len(self.columns)))


def match_classes(names: Sequence[str], labels: Sequence[str], *, who: str) -> ClassOrder:
    """The order of a checkpoint whose id2label reads `names`; `who` begins the message.

    Raises: LabelMismatch for other or another number of classes.
    """
    if len(names) != len(labels):
        raise LabelMismatch(
            f"{who}: its head has {len(names)} classes ({_some(names)}), spec.task.labels has {len(labels)} "
            f"({_some(labels)}); use a checkpoint of this task, or one without a classifier head"
        )
    if all(re.fullmatch(rf"LABEL_{i}", name) for i, name in enumerate(names)):
        return ClassOrder(tuple(range(len(labels))), named=False)
    columns = [find_name(label, names) for label in labels]
    if None in columns or len(set(columns)) != len(columns):
        raise LabelMismatch(
            f"{who}: its classes are {_some(names)}, spec.task.labels are {_some(labels)}; "
            "name the labels as the checkpoint's id2label does, or use a checkpoint of this task"
        )
    if any(names[column] != label for column, label in zip(columns, labels, strict=True) if column is not None):
        log.warning("class names differ in case only", extra={"checkpoint": list(names), "task": list(labels)})
    return ClassOrder(tuple(column for column in columns if column is not None), named=True)


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:6])
    return shown if len(names) <= 6 else f"{shown}, ..."
