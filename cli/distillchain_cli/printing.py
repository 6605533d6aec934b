"""Where a command's words go: results to stdout, talk to stderr; documents as JSON or YAML."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

import yaml

from distillchain_api.failures import FailureClass, troubleshooting
from distillchain_cli.options import Output


def result(text: str) -> None:
    """What was asked for."""
    print(text, flush=True)  # noqa: T201


def talk(text: str) -> None:
    """Everything else."""
    print(text, file=sys.stderr, flush=True)  # noqa: T201


def is_document(output: Output) -> bool:
    """Whether a machine reads it."""
    return output in (Output.JSON, Output.YAML)


def document_text(document: dict[str, Any], output: Output) -> str:
    """A document as YAML where that was asked for, else as JSON."""
    if output is Output.YAML:
        return yaml.safe_dump(document, sort_keys=False, allow_unicode=True).rstrip("\n")
    return json.dumps(document, indent=2, ensure_ascii=False)


def as_list(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Objects as kubectl prints several."""
    return {"apiVersion": "v1", "kind": "List", "items": list(items)}


def see(failure_class: FailureClass | str) -> str:
    """The last line about a failure."""
    return f"see {troubleshooting(failure_class)}"
