"""Log lines: constant text and fields, as JSON or as plain text."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

from distillchain_api.wire.plain_text import on_one_line
from distillchain_operator.settings import Settings

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "settings"}

LIBRARIES = ("aiohttp", "asyncio", "kubernetes")


class FieldFormatter(logging.Formatter):
    """One line for each record, its `extra` fields included.

    Args:
        as_json: writes a JSON object, else `time level text key=value ...`.
    """

    def __init__(self, *, as_json: bool) -> None:
        super().__init__()
        self._as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line; a traceback is in the field `traceback`, in plain text below the line."""
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        extra = {key: value for key, value in vars(record).items() if key not in _STANDARD and not key.startswith("_")}
        trace = self.formatException(record.exc_info) if record.exc_info and record.exc_info[0] else ""
        if self._as_json:
            line: dict[str, Any] = {
                "time": moment,
                "level": record.levelname.lower(),
                "logger": record.name,
                "event": record.getMessage(),
                **extra,
            }
            # `default`: a field may hold any object, and a log line must not raise.
            return json.dumps({**line, "traceback": trace} if trace else line, default=str)
        # Values hold texts of trainers and webhooks, which must not look like another line or command the terminal.
        fields = "".join(f" {key}={on_one_line(str(value))}" for key, value in extra.items())
        text = f"{moment} {record.levelname} {on_one_line(record.getMessage())}{fields}"
        return text + (f"\n{trace}" if trace else "")


def configure_logging(settings: Settings) -> None:
    """Writes all logs to stderr; of libraries only WARNING and above, unless the level is debug.

    Nothing of kopf, which logs a traceback for each try to reach the API server; watching.py reads its errors.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(FieldFormatter(as_json=settings.log_format == "json"))
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler], force=True)
    is_debug = settings.log_level == "debug"
    for name in LIBRARIES:
        logging.getLogger(name).setLevel(logging.DEBUG if is_debug else logging.WARNING)
    logging.getLogger("kopf").setLevel(logging.DEBUG if is_debug else logging.ERROR)
    logging.getLogger("kopf").propagate = is_debug
