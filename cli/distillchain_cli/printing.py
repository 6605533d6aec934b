"""Where a command's words go: results to stdout, talk to stderr; documents as JSON or YAML.

Who goes away while a command writes ends it, as everywhere; but not one that calls `outlive_readers`.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TextIO, cast

import yaml

from distillchain_api.failures import FailureClass, troubleshooting
from distillchain_cli.options import Output


def result(text: str) -> None:
    """What was asked for."""
    print(text, flush=True)  # noqa: T201


def talk(text: str) -> None:
    """Everything else."""
    print(text, file=sys.stderr, flush=True)  # noqa: T201


READER_IS_GONE = (errno.EPIPE, errno.EIO)
"""What a write to a pipe or to a terminal fails with once nobody is at its other end."""


def outlive_readers() -> None:
    """From now on talk that cannot be written is dropped, and so is a result that nobody is there to read.

    A result that does not fit on the disk is still a failure.
    """
    if sys.stdout is not None:  # None under `>&-`, and print() knows it
        sys.stdout = cast("TextIO", Outliving(sys.stdout, lambda error: error.errno in READER_IS_GONE))
    talk_to = sys.stderr if sys.stderr is not None else os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
    sys.stderr = cast("TextIO", Outliving(talk_to, lambda _: True))


class Outliving:
    """A stream that falls silent for good when a write fails with what `is_borne`."""

    def __init__(self, stream: TextIO, is_borne: Callable[[OSError], bool]) -> None:
        self._stream, self._is_borne = stream, is_borne

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """As a stream does."""
        with self._bearing():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """As a stream does."""
        with self._bearing():
            self._stream.flush()

    @contextmanager
    def _bearing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if not self._is_borne(error):
                raise
            # What is left in the buffer is written again, at last when the interpreter ends: to there.
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)


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
