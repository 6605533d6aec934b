"""Matches class names: of a label column, of its cells, and of the id2label of checkpoints, with `task.labels`.

Names match in any Unicode form ("é" may be one character or two), and in another case if only one class fits.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from distillchain_api.faults import listed
from distillchain_trainer.data.row import Row
from distillchain_trainer.data.tables import Table
from distillchain_trainer.errors import DataInvalid, LabelMismatch
from distillchain_trainer.stage_warnings import StageWarnings

SHOWN_NAMES = 6
TRUTH_VALUE = "labels are texts or whole numbers: write one of these, or name two classes true and false"


class UnknownLabel(ValueError):
    """A cell that names no class; the message is what was expected."""


class LabelReader:
    """Cells of a label column to class indices.

    A name takes precedence over a number. A whole number is an index into the labels, unless the labels themselves
    look like numbers: then "4", 4 and 4.0 are all the class named 4.

    Attributes:
        other_case: cells that differ from their label in case only, with that label.
    """

    def __init__(self, labels: Sequence[str]) -> None:
        self._labels = list(labels)
        self._numeric = {number: i for i, name in enumerate(labels) if (number := _number(name)) is not None}
        self._known: dict[tuple[type, object], int] = {}
        self.other_case: dict[str, str] = {}

    def index_of(self, cell: object) -> int:
        """The class of a cell. Raises: UnknownLabel, with what was expected."""
        # The type too, because 1, 1.0 and True are the same key of a dict.
        key = (type(cell), cell)
        # Looked up once: a column of any length has as many different cells as there are classes.
        if key not in self._known:
            self._known[key] = self._find(cell)
        return self._known[key]

    def _find(self, cell: object) -> int:
        if isinstance(cell, str):
            name = cell.strip()
            found = find_name(name, self._labels)
            if found is not None:
                if not is_same_name(name, self._labels[found]):
                    self.other_case[name] = self._labels[found]
                return found
        elif isinstance(cell, bool):
            # In Python a bool is an int, but True is a name here and not class 1.
            found = find_name(str(cell), self._labels)
            if found is not None:
                return found
            raise UnknownLabel(f"{self._expectation()}; {TRUTH_VALUE}")
        number = _number(cell)
        # Where labels are numbers, a number is a name and never an index.
        if number is not None and self._numeric:
            if number in self._numeric:
                return self._numeric[number]
        elif number is not None and number.is_integer() and 0 <= number < len(self._labels):
            # Also 1.0: pandas writes whole numbers so in a column with empty cells.
            return int(number)
        raise UnknownLabel(self._expectation() + explain_lookalike(cell, self._labels))

    def _expectation(self) -> str:
        names = shorten(self._labels)
        by_number = "" if self._numeric else f", or a number from 0 to {len(self._labels) - 1} in that order"
        return f"expected one of {names}{by_number}"


def with_names(table: Table, labels: Sequence[str], *, shown: str) -> Table:
    """A table whose last column has labels or lists of them: numbers that the data set has names for become names.

    Raises: DataInvalid for a name that is not one of the task's labels.
    """
    names = table.class_names
    unknown = [name for name in names if find_name(name, labels) is None]
    # Where labels are numbers, those of the column are their names.
    if len(unknown) == len(names) and all(_number(label) is not None for label in labels):
        return table
    if unknown:
        raise DataInvalid(
            f"{shown}: its classes are {shorten(names)}, spec.task.labels are {shorten(labels)}; "
            "name the labels as the data set does, in any order"
        )
    return replace(table, rows=_named(table.rows, names)) if names else table


def _named(rows: Iterator[Row], names: Sequence[str]) -> Iterator[Row]:
    def name_of(cell: object) -> object:
        # -1 marks a hidden label, as in GLUE's test splits. It stays a number and is refused with its row.
        return names[cell] if isinstance(cell, int) and 0 <= cell < len(names) else cell

    for row in rows:
        *others, label = row.cells
        yield Row(row.number, (*others, [name_of(it) for it in label] if isinstance(label, list) else name_of(label)))


def find_name(name: str, labels: Sequence[str]) -> int | None:
    """Index of `name` among the labels: the same characters, else the same name, else the only one in another case."""
    if name in labels:
        return list(labels).index(name)
    # From strict to loose: a label in the same case is preferred. Two that fit alike are refused, not guessed.
    for canonical in (_composed, _caseless):
        alike = [i for i, label in enumerate(labels) if canonical(label) == canonical(name)]
        if alike:
            return alike[0] if len(alike) == 1 else None
    return None


def is_same_name(one: str, other: str) -> bool:
    """Whether two names look the same; the Unicode form of "é" may differ."""
    return _composed(one) == _composed(other)


def explain_lookalike(name: object, labels: Sequence[str]) -> str:
    """The difference between a name and the label that looks the same, such as a no-break space; "" if none does."""
    if not isinstance(name, str):
        return ""
    label = next((label for label in labels if _visible(label) == _visible(name)), None)
    return "" if label is None else f" ({name!a} looks like {label!a}, but its characters differ)"


def _visible(name: str) -> str:
    # NFKC makes a no-break space a space; "Cf" are characters without a shape, such as a zero-width space.
    compatible = unicodedata.normalize("NFKC", name).casefold()
    shown = "".join(character for character in compatible if unicodedata.category(character) != "Cf")
    return " ".join(shown.split())


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _caseless(name: str) -> str:
    return _composed(_composed(name).casefold())  # casefold can decompose


def _number(value: object) -> float | None:
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, str) and not re.fullmatch(r"\s*[-+]?\d+(\.\d*)?\s*", value):
        return None  # float() would also read "nan", "inf" and "1_0"
    try:
        number = float(value)  # type: ignore[arg-type]  # whatever a column holds
    # OverflowError: JSON has integers of any size.
    except (TypeError, ValueError, OverflowError):
        return None
    # NaN, the only number that differs from itself, is how some files mark an empty cell.
    return number if number == number else None


@dataclass(frozen=True)
class ClassOrder:
    """Which class of a checkpoint is which class of the task.

    Attributes:
        columns: `columns[i]` is the checkpoint's class of `task.labels[i]`.
        named: False for the default names LABEL_0.., whose order must be proved by measuring.
    """

    columns: tuple[int, ...]
    named: bool

    @property
    def turned(self) -> bool:
        """Whether the checkpoint's order differs from the task's."""
        return self.columns != tuple(range(len(self.columns)))


def match_classes(
    names: Sequence[str], labels: Sequence[str], *, field: str, uri: str, wanted: str, warnings: StageWarnings
) -> ClassOrder:
    """The order of a checkpoint whose id2label has `names`.

    Args:
        field: where the spec names the checkpoint `uri`, for messages.
        wanted: which checkpoint can take its place.
    Raises: LabelMismatch for other names or another number of classes.
    """
    if len(names) != len(labels):
        raise LabelMismatch(
            f"{field}: the head of {uri} has {len(names)} classes ({shorten(names)}), spec.task.labels has "
            f"{len(labels)} ({shorten(labels)}); correct spec.task.labels, or use {wanted}"
        )
    # What transformers writes if nobody gives names. Such names say nothing about the order.
    if all(re.fullmatch(rf"LABEL_{i}", name) for i, name in enumerate(names)):
        return ClassOrder(tuple(range(len(labels))), named=False)
    columns = [find_name(label, names) for label in labels]
    # Two labels may fit the same class, if they differ in case only.
    if None in columns or len(set(columns)) != len(columns):
        unmatched = next((label for label, column in zip(labels, columns, strict=True) if column is None), None)
        raise LabelMismatch(
            f"{field}: the classes of {uri} are {shorten(names)}, spec.task.labels are {shorten(labels)}"
            f"{explain_lookalike(unmatched, names)}; write spec.task.labels as its id2label has them, or use {wanted}"
        )
    other_case = [
        f"{names[column]} for {label}"
        for column, label in zip(columns, labels, strict=True)
        if column is not None and not is_same_name(names[column], label)
    ]
    if other_case:
        warnings.add(f"{field}: the class names of {uri} differ from spec.task.labels in case: {shorten(other_case)}")
    return ClassOrder(tuple(column for column in columns if column is not None), named=True)


def shorten(names: Sequence[str]) -> str:
    """The first names, for a message; there may be a thousand."""
    return listed(names, most=SHOWN_NAMES)
