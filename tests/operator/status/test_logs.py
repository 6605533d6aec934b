"""Log lines of the operator."""

from __future__ import annotations

import json
import logging

from distillchain_operator.logs import FieldFormatter

RECORD = logging.makeLogRecord(
    {"msg": "chain event", "levelname": "INFO", "created": 0.0, "note": "a\n2026-01-01 ERROR forged \x1b[2J"}
)


def test_a_text_of_a_trainer_cannot_forge_a_line_or_command_the_terminal():
    assert FieldFormatter(as_json=False).format(RECORD) == (
        "1970-01-01T00:00:00.000+00:00 INFO chain event note=a 2026-01-01 ERROR forged \\x1b[2J"
    )
    line = FieldFormatter(as_json=True).format(RECORD)
    assert "\n" not in line
    assert "\x1b" not in line
    assert json.loads(line)["note"] == "a\n2026-01-01 ERROR forged \x1b[2J"
