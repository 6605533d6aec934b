"""Text of trainers and containers, made safe for one line of a terminal, a log or a status."""

from __future__ import annotations

import re
import unicodedata
from typing import Any

_SPACES = re.compile(r"\s*[\r\n\t\v\f\x85\u2028\u2029]\s*")
UNSAFE = ("Cc", "Cs")  # control characters and half characters
REORDERING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def on_one_line(text: str) -> str:
    """`text` with a space for each line break, and other control characters written as escapes, such as `\\x1b`."""
    text = _SPACES.sub(" ", text)
    # Nearly all texts: isprintable refuses a superset.
    if text.isprintable():
        return text
    return "".join(_escaped(character) if _is_unsafe(character) else character for character in text)


def _is_unsafe(character: str) -> bool:
    return character in REORDERING or unicodedata.category(character) in UNSAFE


def _escaped(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def values_on_one_line(value: Any) -> Any:
    """Decoded JSON with every text in it on one line."""
    if isinstance(value, str):
        return on_one_line(value)
    if isinstance(value, list):
        return [values_on_one_line(item) for item in value]
    if isinstance(value, dict):
        return {key: values_on_one_line(item) for key, item in value.items()}
    return value
