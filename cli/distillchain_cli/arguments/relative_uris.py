"""Relative file:// URIs (`file://./data`), which only the command line accepts, and hints for what is no URI."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from distillchain_api.faults import Fault
from distillchain_api.values import SourceUri
from distillchain_cli.errors import BadInput

RELATIVE = re.compile(r"file://(\.{1,2}(?:/.*)?)")
GOT = re.compile(r'got ("(?:[^"\\]|\\.)*"), expected ')
SCHEME = re.compile(r"(hf|s3|file):(?://)?(.*)", re.IGNORECASE)
HUB_PAGE = re.compile(r"https://huggingface\.co/(?:datasets/)?([^/]+(?:/[^/]+)?)(?:/tree/main)?/?")
WEB_ADDRESS = re.compile(r"https?://")
BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
BUCKET_RULE = "a bucket's name has 3 to 63 lowercase letters, digits, dots and hyphens"


def resolve_uris(value: Any, folder: Path) -> Any:
    """`value` with every relative file:// URI in it made absolute; they start at `folder`.

    Raises: BadInput when the name of that folder is not UTF-8, because URIs are.
    """
    if isinstance(value, dict):
        return {key: resolve_uris(item, folder) for key, item in value.items()}
    if isinstance(value, list):
        return [resolve_uris(item, folder) for item in value]
    if isinstance(value, str) and (relative := RELATIVE.fullmatch(value)):
        path = os.path.normpath(folder / relative[1])
        try:
            path.encode()
        except UnicodeEncodeError as error:
            raise BadInput(
                f"{path!r}: this name is not UTF-8; rename the folder, or name a link to it (ln -s)"
            ) from error
        return f"file://{path}"
    return value


def with_uri_hint(fault: Fault, *, base: str) -> Fault:
    """The fault of a URI with what was meant or is wrong, if it can be recognised; other faults unchanged.

    Args:
        base: where relative paths start, for the message.
    """
    expectation, _, _ = fault.problem.rpartition("; ")
    found = GOT.match(fault.problem)
    if found is None or not expectation.endswith("file:///absolute/path"):
        return fault
    value, forms = json.loads(found[1]), expectation[found.end() :]
    meant = [uri for uri in _spellings(value) if f"{uri.partition('//')[0]}//" in forms and _is_uri(uri)]
    relative_to = f" for a path relative to {base}"
    remedy = ", or ".join(uri + (relative_to if RELATIVE.fullmatch(uri) else "") for uri in meant)
    if remedy:
        return Fault(fault.field, f"{expectation}; write {remedy}")
    scheme, _, rest = value.partition("://")
    if scheme == "file" and " " in rest:
        return Fault(fault.field, f"{expectation}; rename the folder, or name a link to it without spaces (ln -s)")
    if scheme == "s3" and not BUCKET.fullmatch(rest.partition("/")[0]):
        return Fault(fault.field, f"{expectation}; {BUCKET_RULE}")
    if WEB_ADDRESS.match(value) and forms.startswith("s3://"):
        return Fault(fault.field, f"{expectation}; the address of a server belongs into spec.storage.endpointUrl")
    if rest and f"{scheme}://" not in forms:
        return Fault(fault.field, f"{expectation}; {scheme}:// cannot be used here")
    return fault


def _spellings(value: str) -> Iterator[str]:
    """What may be meant by a text that is no URI; not all of it is valid."""
    if page := HUB_PAGE.fullmatch(value):
        yield f"hf://{page[1]}"
    elif written := SCHEME.fullmatch(value):
        scheme, rest = written[1].lower(), written[2]
        yield _of_path(rest) if scheme == "file" else f"{scheme}://{rest.lstrip('/')}"
    elif value.startswith(("/", "./", "../", "~/")):
        yield _of_path(value)
    elif ":" not in value:
        yield f"hf://{value}"
        yield f"s3://{value}"
        yield _of_path(value)


def _of_path(path: str) -> str:
    if path.startswith("~"):
        with contextlib.suppress(RuntimeError):  # there is no such home folder
            path = str(Path(path).expanduser())
    return f"file://{path}" if path.startswith(("/", "./", "../")) else f"file://./{path}"


def _is_uri(text: str) -> bool:
    try:
        _uri_type().validate_python(resolve_uris(text, Path("/")))
    except ValidationError:
        return False
    return True


@functools.cache
def _uri_type() -> TypeAdapter[str]:
    return TypeAdapter(SourceUri)  # only a refused URI needs it
