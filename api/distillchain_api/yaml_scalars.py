"""The value of a plain YAML scalar, as kubectl reads it.

kubectl parses YAML with sigs.k8s.io/yaml, whose rules (goyaml.v2, resolve.go) lie between YAML 1.1 and 1.2. PyYAML
follows YAML 1.1 and differs: it reads 1:30 as 90, 2024-01-01 as a date, and 1e3, 0o17 and 018 as text. A test compares
the table of examples with a real kubectl.
"""

from __future__ import annotations

import math
import re

Scalar = str | int | float | bool | None

_WORDS: dict[str, bool | None] = {
    **dict.fromkeys(("y", "Y", "yes", "Yes", "YES", "true", "True", "TRUE", "on", "On", "ON"), True),
    **dict.fromkeys(("n", "N", "no", "No", "NO", "false", "False", "FALSE", "off", "Off", "OFF"), False),
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
}
_INFINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_STARTS_LIKE_A_NUMBER = re.compile(r"[-+.0-9]")
_POINT_FIRST = re.compile(r"\.[0-9]+(_[0-9]+)*([eE][-+]?[0-9]+(_[0-9]+)*)?")
_INTEGER = re.compile(r"(?P<sign>[-+]?)(?:0(?P<base>[xXoObB])?)?(?P<digits>[0-9a-fA-F]+)")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_BASES = {"x": 16, "o": 8, "b": 2}
_INT64 = range(-(2**63), 2**63)


class NotFinite(ValueError):
    """Infinity or NaN, which JSON and therefore the API server cannot hold."""


def read_scalar(text: str) -> Scalar:
    """The value of an unquoted scalar. Raises: NotFinite."""
    # A table before any pattern, as in goyaml: `y` and `~` are not text.
    if text in _WORDS:
        return _WORDS[text]
    if _INFINITE.fullmatch(text):
        raise NotFinite(text)
    if not _STARTS_LIKE_A_NUMBER.match(text):
        return text
    # goyaml leaves underscores to ParseFloat here, which wants a digit on both sides of each.
    if text.startswith("."):
        return _float(text) if _POINT_FIRST.fullmatch(text) else text
    # goyaml removes every underscore, also at the end and two in a row.
    plain = text.replace("_", "")
    whole = _integer(plain)
    if whole is not None:
        return json_number(whole)
    return _float(plain, otherwise=text) if _FLOAT.fullmatch(plain) else text


def json_number(value: float) -> int | float:
    """A number as the API server holds it after kubectl has sent it as JSON.

    Go writes 5.0 as `5`, which the API server reads as an integer; an integer beyond 64 bits becomes a float.

    Raises: NotFinite.
    """
    if isinstance(value, int):
        return value if value in _INT64 else _finite(float(value))
    return int(value) if _finite(value).is_integer() and int(value) in _INT64 else value


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise NotFinite(str(value))
    return value


def _integer(text: str) -> int | None:
    """What Go's strconv.ParseInt(text, 0, 64) returns, with the prefixes 0x, 0o, 0b and 0 (octal); None if it fails."""
    found = _INTEGER.fullmatch(text)
    if found is None:
        return None
    prefix, digits = found["base"], found["digits"]
    is_octal = prefix is None and text.lstrip("+-").startswith("0")
    base = _BASES[prefix.lower()] if prefix else 8 if is_octal else 10
    try:
        value = int(found["sign"] + digits, base)
    except ValueError:  # such as 018 or 0b12
        return None
    # ParseInt and ParseUint fail beyond 64 bits: a decimal is then read as a float, a hexadecimal as text.
    return value if -(2**63) <= value < 2**64 else None


def _float(text: str, *, otherwise: str = "") -> Scalar:
    """A number out of a text that has its shape. One beyond 1.8e308 stays text, because ParseFloat fails."""
    value = float(text)
    return json_number(value) if math.isfinite(value) else otherwise or text
