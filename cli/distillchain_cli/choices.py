"""Parsers for option values. Typer's own messages quote pydantic ("Value error, ...", "Input should be ...")."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import TypeVar

from pydantic_core import PydanticCustomError

from distillchain_api.faults import nearest

ChoiceT = TypeVar("ChoiceT", bound=StrEnum)


def choice_of(choices: type[ChoiceT]) -> Callable[[str], ChoiceT]:
    """A parser for the values of an enum."""

    def parse(text: str) -> ChoiceT:
        try:
            return choices(text)
        except ValueError as error:
            known = [str(choice) for choice in choices]
            expected = f"expected one of {', '.join(known)}"
            # `nearest` lists all names when none is close, and the list is there already.
            hint = nearest(text, known)
            raise _bad_value(text, expected + (f"; {hint}" if hint.startswith("did you mean") else "")) from error

    return parse


def line_count(text: str | int) -> int:
    """A whole number from 0."""
    # typer also passes default values, which are numbers already.
    digits = str(text)
    if not (digits.isascii() and digits.isdecimal()):
        raise _bad_value(digits, "expected a whole number, 0 or more")
    return int(digits)


def _bad_value(text: str, problem: str) -> PydanticCustomError:
    """Typer adds the option and the usage line in front."""
    return PydanticCustomError("bad_value", "{problem}", {"problem": f"got {text}, {problem}"})
