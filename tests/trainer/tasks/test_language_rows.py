"""Bad rows of language models: each message names file, line, column and the remedy."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from distillchain_trainer.errors import DataInvalid
from distillchain_trainer.stage_warnings import StageWarnings
from distillchain_trainer.tasks.causal_lm.rows import fault_of_chat, read_task_data
from trainer.language_parts import a_task

USER = {"role": "user", "content": "Hello"}
GOOD = [USER, {"role": "assistant", "content": "Good day"}]


@pytest.mark.parametrize(
    "form, cells, want",
    [
        ("text", {"text": " "}, 'column "text": the cell is empty; fill it or remove the row'),
        ("text", {"text": 5}, 'column "text": got 5, expected text; convert it to text, or name another column'),
        (
            "completion",
            {"prompt": "a", "completion": ""},
            'column "completion": the cell is empty; fill it or remove the row',
        ),
        (
            "messages",
            {"messages": "user: Hello"},
            'column "messages": got text, expected a list of objects with "role" and "content"; keep chats in jsonl or '
            "parquet, not as text",
        ),
        ("messages", {"messages": []}, 'column "messages": the cell is empty; fill it or remove the row'),
        (
            "messages",
            {"messages": ["Hello"]},
            'column "messages": message 1: got "Hello", expected an object with "role" and "content"',
        ),
        ("messages", {"messages": [{"role": "user"}]}, 'column "messages": message 1: no "content"; add it'),
        (
            "messages",
            {"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "a"}}]}]},
            'column "messages": message 2: it calls a tool and has no content; chats with images or tool calls are not '
            "supported",
        ),
        (
            "messages",
            {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
            'column "messages": message 1: content: got [{"type": "image"}], expected text; chats with images or tool calls are not '
            "supported",
        ),
        (
            "messages",
            {"messages": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
            'column "messages": message 1: no "role"; as in ShareGPT, it has from and value: rename them to role and content, '
            "and human and gpt to user and assistant",
        ),
        (
            "messages",
            {"messages": [{"role": "human", "content": "a"}, {"role": "gpt", "content": "b"}]},
            'column "messages": no message has the role assistant, so there is nothing to learn; write user and assistant '
            "instead of gpt, human",
        ),
        (
            "messages",
            {"messages": [USER]},
            'column "messages": no message has the role assistant, so there is nothing to learn; add its answer or remove '
            "the row",
        ),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, form: str, cells: dict[str, Any], want: str):
    good = {"text": "The river", "prompt": "The", "completion": "river", "messages": GOOD}
    lines = [json.dumps({name: good[name] for name in cells}), json.dumps(cells)]
    (tmp_path / "train.jsonl").write_text("\n".join(lines) + "\n")

    with pytest.raises(DataInvalid) as caught:
        read_task_data(
            a_task(tmp_path, form),
            endpoint_url=None,
            region=None,
            folder=tmp_path / "scratch",
            warnings=StageWarnings(),
        )

    assert str(caught.value) == f"file://{tmp_path}/train.jsonl:2, {want}"


@pytest.mark.parametrize(
    "field, value",
    [("timestamp", datetime(2026, 1, 2, tzinfo=UTC)), ("name", "\ud83d")],
    ids=["a date of Parquet", "half of a surrogate pair"],
)
def test_a_field_of_a_message_that_cannot_be_written_is_named(field: str, value: object):
    fault = fault_of_chat([USER, {**GOOD[1], field: value}])

    assert fault is not None
    assert fault.startswith(f"message 2: {field}: got ")
    assert fault.endswith("remove this field")
