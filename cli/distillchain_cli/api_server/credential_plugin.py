"""Explains why a kubeconfig's credential plugin (`exec`), such as `aws eks get-token`, gave no credentials.

The client library only logs the reason, and then sends requests without credentials.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

MAX_CHARS = 300  # of a reason: some plugins print a traceback


class _Errors(logging.Filter):
    """Keeps what the library logs as an error, so that it can be part of a message."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def filter(self, record: logging.LogRecord) -> bool:
        """Drops errors."""
        if record.levelno < logging.ERROR:
            return True
        self.texts.append(record.getMessage())
        return False


@contextmanager
def logged_errors() -> Iterator[list[str]]:
    """What is logged as an error within the block, in place of printing it."""
    errors = _Errors()
    logging.root.addFilter(errors)
    try:
        yield errors.texts
    finally:
        logging.root.removeFilter(errors)


def plugin_fault(user: Mapping[str, Any], logged: list[str]) -> str:
    """Why the plugin of a kubeconfig's user gave no credentials, and the remedy.

    Args:
        user: its entry, with the field `exec`.
        logged: errors of the library.
    """
    plugin = user["exec"]
    command = plugin.get("command", "-")
    reason = " ".join(" ".join(logged).split())
    if reason.startswith("[Errno 2]"):
        hint = " ".join(str(plugin.get("installHint") or "install it, or correct PATH").split())
        return f"the credential plugin {command} does not exist; {hint[:MAX_CHARS]}"
    # On a terminal a plugin writes to it, and the library then fails to read its message: 'NoneType' object ...
    why = f" ({reason[:MAX_CHARS]})" if reason.startswith("exec:") else ""
    return f"the credential plugin {command} gave no credentials{why}; log in again, or run the plugin to see why"
