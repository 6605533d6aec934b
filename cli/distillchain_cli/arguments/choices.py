"""Parsers for option values. Typer's own messages quote pydantic ("Value error, ...", "Input should be ...")."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

from pydantic_core import PydanticCustomError

from distillchain_api.faults import nearest
from distillchain_api.values import DURATION, duration_seconds

ChoiceT = TypeVar("ChoiceT", bound=StrEnum)


def choice_of(choices: type[ChoiceT], *, to_file: str = "") -> Callable[[str], ChoiceT]:
    """A parser for the values of an enum; see `name_of`."""

    known = [str(choice) for choice in choices]
    return lambda text: choices(name_of(text, known, to_file=to_file))


def name_of(text: str, known: Sequence[str], *, to_file: str = "") -> str:
    """The text, if it is one of the known names.

    Args:
        to_file: where the names are formats, what to write before the name of a file that is to be written.
    """
    if text in known:
        return text
    expected = f"expected one of {', '.join(known)}"
    if to_file and (remedy := _remedy_for_file(text, known, to_file)):
        raise bad_value(text, f"{expected}; {remedy}")
    # `nearest` lists all names when none is close, and the list is there already.
    beginnings = [name.partition("=")[0] for name in known]
    hint = "" if text in beginnings else nearest(text.casefold(), known)
    raise bad_value(text, expected + (f"; {hint}" if hint.startswith("did you mean") else ""))


def _remedy_for_file(text: str, known: Sequence[str], to_file: str) -> str:
    """What to do about the name of a file in place of a format; empty for another text."""
    suffix = Path(text).suffix.removeprefix(".")
    ending = {"yml": "yaml", "htm": "html", "markdown": "md"}.get(suffix, suffix)
    if not ending and "/" not in text:
        return ""
    # A chain file that stands there would be overwritten by what is suggested below.
    if ending in ("yaml", "json") and Path(text).exists():
        return f"a format comes before the file, such as -o json {text}"
    return f"to write to a file: {f'-o {ending} ' if ending in known else ''}{to_file} {text}"


def line_count(text: str | int) -> int:
    """A whole number from 0."""
    # typer also passes default values, which are numbers already.
    digits = str(text)
    if not (digits.isascii() and digits.isdecimal()):
        raise bad_value(digits, "expected a whole number, 0 or more")
    return int(digits)


def amount(text: str | float) -> float:
    """A finite number from 0."""
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not (math.isfinite(found) and found >= 0):
        raise bad_value(str(text), "expected a number, 0 or more, such as 0.5")
    return found


def seconds(text: str | int, *, zero_is_allowed: bool = False) -> int:
    """The seconds of a duration such as `1h30m`, or of a number of seconds, as kubectl accepts both."""
    given = str(text)
    found = duration_seconds(given) if re.fullmatch(DURATION, given) else None
    if given.isascii() and given.isdecimal():
        found = int(given)
    if found is None or (found == 0 and not zero_is_allowed):
        raise bad_value(given, "expected a duration such as 30s, 5m or 1h30m")
    return found


def limit(text: str | int) -> int:
    """As `seconds`, and 0 for no limit."""
    return seconds(text, zero_is_allowed=True)


def bad_value(text: str, problem: str) -> PydanticCustomError:
    """An error for the value of an option. Typer adds the option and the usage line in front."""
    return PydanticCustomError("bad_value", "{problem}", {"problem": f"got {text}, {problem}"})
