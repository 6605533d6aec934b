"""Relative file:// URIs, which only the command line accepts: `file://./data`, `file://../models`."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from distillchain_api.faults import Fault

RELATIVE = re.compile(r"file://(\.{1,2}(?:/.*)?)")
MEANT_RELATIVE = re.compile(r'got "(?:file://(?![./])|(?=\.\.?/))([^"]+)"')
BUCKET_AND_KEY = re.compile(r'got "s3://([^/"]*)')
BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
MEANT_ABSOLUTE = re.compile(r'got "(/[^"]+)"')


def resolve_uris(value: Any, folder: Path) -> Any:
    """`value` with every relative file:// URI in it made absolute; they start at `folder`."""
    if isinstance(value, dict):
        return {key: resolve_uris(item, folder) for key, item in value.items()}
    if isinstance(value, list):
        return [resolve_uris(item, folder) for item in value]
    if isinstance(value, str) and (relative := RELATIVE.fullmatch(value)):
        return "file://" + os.path.normpath(folder / relative[1])
    return value


def with_uri_hint(fault: Fault, *, base: str) -> Fault:
    """The fault of a URI with what was meant or is wrong, if it can be recognised; other faults unchanged.

    Args:
        base: where relative paths start, for the message.
    """
    expectation, _, _ = fault.problem.rpartition("; ")
    if not expectation.endswith("file:///absolute/path"):
        return fault
    if found := MEANT_RELATIVE.match(fault.problem):
        path = found[1] if found[1].startswith(".") else f"./{found[1]}"
        return Fault(fault.field, f"{expectation}; write file://{path} for a path relative to {base}")
    if found := MEANT_ABSOLUTE.match(fault.problem):
        return Fault(fault.field, f"{expectation}; write file://{found[1]}")
    if (found := BUCKET_AND_KEY.match(fault.problem)) and not BUCKET.fullmatch(found[1]):
        rule = "a bucket's name has 3 to 63 lowercase letters, digits, dots and hyphens"
        return Fault(fault.field, f"{expectation}; {rule}")
    return fault
