"""Where output goes: results to stdout, everything else to stderr; documents as JSON or YAML.

By default a command exits when the reader closes the pipe, as usual. `survive_closed_output` changes that.
"""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TextIO, cast

import typer
import yaml

from distillchain_api.failures import FailureClass, troubleshooting
from distillchain_api.faults import BadDocument
from distillchain_api.yaml_scalars import NotFinite, read_scalar
from distillchain_cli.arguments.options import log
from distillchain_cli.errors import EXIT_INTERRUPTED, RunFailed
from distillchain_cli.output.output import Output


def print_result(text: str, *, end: str = "\n") -> None:
    """Prints what the user asked for to stdout. Raises: RunFailed if it cannot be written, as on a full disk."""
    try:
        print(text, end=end, flush=True)  # noqa: T201
    except OSError as error:
        if error.errno in NO_READER:
            raise
        _discard(sys.stdout)
        raise RunFailed(
            f"stdout: the result cannot be written ({error.strerror}); free the disk, or write to another file"
        ) from error


def print_message(text: str) -> None:
    """Prints progress, warnings and errors to stderr; drops them where they cannot be written, as on a full disk."""
    try:
        print(text, file=sys.stderr, flush=True)  # noqa: T201
    except OSError as error:
        if error.errno in NO_READER:
            raise
        _discard(sys.stderr)


def use_utf8() -> None:
    """From now on, writes UTF-8 whatever the locale: pages and JSON are UTF-8, and other encodings lack characters."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # not under `>&-`, where there is no stream
            stream.reconfigure(encoding="utf-8", errors="surrogateescape")


class LogFormatter(logging.Formatter):
    """The text of a log record and its reason, such as that of a request which is repeated for half a minute."""

    def format(self, record: logging.LogRecord) -> str:
        """The text as the terminal shows it."""
        text, why = super().format(record), record.__dict__.get("why")
        return f"{text}: {why}" if why else text


def print_faults(error: BadDocument) -> None:
    """Prints one line for each fault, with its file. A fault of an option names the option and no file."""
    # --set and --storage are named in the field; a file in front would blame the wrong place.
    for fault in error.faults:
        is_of_option = fault.field.startswith("--")
        print_message(str(fault) if is_of_option or not error.source else f"{error.source}: {fault}")
    log.debug("cause", exc_info=error)


NO_READER = (errno.EPIPE, errno.EIO)
"""Errors of a write to a pipe or terminal whose other end was closed."""


def survive_closed_output() -> None:
    """From now on, drops output that cannot be written because its reader closed the pipe or terminal.

    Messages are dropped after any write error. A result that does not fit on the disk is still an error.
    """
    if sys.stdout is not None:  # None under `>&-`, where print() does nothing
        sys.stdout = cast("TextIO", TolerantStream(sys.stdout, lambda error: error.errno in NO_READER))
    stderr = sys.stderr if sys.stderr is not None else os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
    sys.stderr = cast("TextIO", TolerantStream(stderr, lambda _: True))


class TolerantStream:
    """A stream that discards all further output after a write error that `is_tolerated`."""

    def __init__(self, stream: TextIO, is_tolerated: Callable[[OSError], bool]) -> None:
        self._stream, self._is_tolerated = stream, is_tolerated

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Writes as `TextIO.write` does."""
        with self._tolerant():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flushes as `TextIO.flush` does."""
        with self._tolerant():
            self._stream.flush()

    @contextmanager
    def _tolerant(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if not self._is_tolerated(error):
                raise
            _discard(self._stream)


def _discard(stream: TextIO) -> None:
    """Sends what the buffer still holds to /dev/null: the interpreter would try to write it again at exit."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)


@contextmanager
def interruptible() -> Iterator[None]:
    """Ends the command without a message on Ctrl-C, which is how users end a command that follows something."""
    try:
        yield
    except KeyboardInterrupt:
        raise typer.Exit(EXIT_INTERRUPTED) from None


def is_document(output: Output) -> bool:
    """Whether the format is for programs: JSON, YAML or a JSONPath template."""
    return output in (Output.JSON, Output.YAML) or output.template is not None


class _Dumper(yaml.SafeDumper):
    """Quotes every text that kubectl would read as something else, such as y, 1e3 and 018; PyYAML does not."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    try:
        is_plain = read_scalar(text) == text
    except NotFinite:
        is_plain = False
    # Only double quotes keep line breaks other than \n.
    is_plain = is_plain and not any(character in text for character in "\x85\u2028\u2029")
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if is_plain else '"')


_Dumper.add_representer(str, _represent_text)


def print_document(document: dict[str, Any], output: Output) -> None:
    """Prints a document in a format for programs. As in kubectl, the text of a template has no line break of ours."""
    print_result(document_text(document, output), end="\n" if output.template is None else "")


def document_text(document: dict[str, Any], output: Output) -> str:
    """A document as YAML or by the template if that is the format, else as JSON."""
    if output.template is not None:
        return output.template.render(document)
    if output == Output.YAML:
        return yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True).rstrip("\n")
    return json.dumps(document, indent=2, ensure_ascii=False)


def document_line(document: dict[str, Any], output: Output) -> str:
    """One of several documents: JSON in one line, YAML after its separator."""
    if output == Output.JSON:
        return json.dumps(document, ensure_ascii=False, separators=(",", ":"))
    text = document_text(document, output)
    return f"---\n{text}" if output == Output.YAML else text


def as_list(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Several objects as one List, as kubectl prints them."""
    return {"apiVersion": "v1", "kind": "List", "items": list(items)}


def troubleshooting_hint(failure_class: FailureClass | str) -> str:
    """The last line of a failure: where to read about it."""
    return f"see {troubleshooting(failure_class)}"
