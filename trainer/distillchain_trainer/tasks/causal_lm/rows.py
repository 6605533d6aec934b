"""The splits of a task as texts, prompts with completions, or chats. Knows no model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distillchain_api.faults import got, listed
from distillchain_api.tasks.causal_lm import CHATS_AS_TEXT, CausalDataset, CausalLM
from distillchain_trainer.data.cells import EMPTY, fault_of_text, is_empty
from distillchain_trainer.data.split import Split, TaskData
from distillchain_trainer.data.split_writer import SplitWriter
from distillchain_trainer.data.tables import Table
from distillchain_trainer.errors import DataInvalid
from distillchain_trainer.stage_warnings import StageWarnings
from distillchain_trainer.tasks.causal_lm.tokens import Form
from distillchain_trainer.tasks.sources import FIELD, read_splits

KNOWN_ROLES = frozenset({"system", "user", "tool"})
SHARE_GPT = (
    "as in ShareGPT, it has from and value: rename them to role and content, and human and gpt to user and assistant"
)
UNSUPPORTED = "chats with images or tool calls are not supported"
EXPECTED_CHAT = 'expected a list of objects with "role" and "content"'


def form_of(dataset: CausalDataset) -> Form:
    """What a row of the data set is."""
    if dataset.messages is not None:
        return "messages"
    return "text" if dataset.text is not None else "completion"


def columns_of(dataset: CausalDataset) -> list[str]:
    """The columns that are read, in the order of a row's cells."""
    if dataset.messages is not None:
        return [dataset.messages]
    if dataset.text is not None:
        return list(dataset.text)
    assert dataset.prompt is not None
    assert dataset.completion is not None
    return [dataset.prompt, dataset.completion]


def read_task_data(
    task: CausalLM, *, endpoint_url: str | None, region: str | None, folder: Path, warnings: StageWarnings
) -> TaskData:
    """All splits, checked. Files of S3 are downloaded into `folder`.

    Raises: DataInvalid naming file, line and column.
    """
    columns = columns_of(task.dataset)
    return read_splits(
        task.dataset,
        columns,
        lambda role, table, source: _split(task.dataset, role, table, source, folder),
        endpoint_url=endpoint_url,
        region=region,
        folder=folder,
        warnings=warnings,
    )


def _split(dataset: CausalDataset, role: str, table: Table, source: str, folder: Path) -> Split:
    writer = SplitWriter(folder / f"{role}-rows", role, place_prefix=table.place_prefix)
    columns = columns_of(dataset)
    for row in table.rows:
        for column, cell in zip(columns, row.cells, strict=True):
            fault = fault_of_chat(cell) if dataset.messages else fault_of_text(cell)
            if fault is not None:
                raise DataInvalid(f'{table.place(row)}, column "{column}": {fault}')
        # Without a target: what is to be predicted is in the texts themselves.
        writer.add((chat_as_text(row.cells[0]),) if dataset.messages else row.cells, number=row.number)
    split = writer.close()
    if not len(split):
        raise DataInvalid(f"{FIELD}.splits.{role}: {source} has no rows; expected at least one")
    return split


def fault_of_chat(cell: object) -> str | None:
    """Why a cell cannot be used as a chat; None: it can."""
    if is_empty(cell) or cell == []:
        return EMPTY
    if isinstance(cell, str):
        return f"got text, {EXPECTED_CHAT}; {CHATS_AS_TEXT}"
    if not isinstance(cell, list):
        return f"{got(cell)}, {EXPECTED_CHAT}"
    for number, message in enumerate(cell, start=1):
        fault = _fault_of_message(message)
        if fault is not None:
            return f"message {number}: {fault}"
    if all(message["role"] != "assistant" for message in cell):
        roles = listed(sorted({message["role"] for message in cell} - KNOWN_ROLES), most=3)
        remedy = f"write user and assistant instead of {roles}" if roles else "add its answer or remove the row"
        return f"no message has the role assistant, so there is nothing to learn; {remedy}"
    return None


def _fault_of_message(message: object) -> str | None:
    if not isinstance(message, dict):
        return f'{got(message)}, expected an object with "role" and "content"'
    for name in ("role", "content"):
        if message.get(name) is None and name == "content" and message.get("tool_calls"):
            return f"it calls a tool and has no content; {UNSUPPORTED}"
        if message.get(name) is None:
            return f'no "{name}"; {SHARE_GPT if message.keys() >= {"from", "value"} else "add it"}'
        if not isinstance(message[name], str):
            return f"{name}: {got(message[name])}, expected text; {UNSUPPORTED}"
    for name, value in message.items():
        # Templates may use further fields, so they are kept; a date of Parquet, for one, has no JSON.
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except (TypeError, ValueError):
            if name != "content":
                return f"{name}: {got(value)}, expected text, numbers, lists or objects; remove this field"
    # An empty prompt or answer of a chat is text like any other; half of a surrogate pair is not.
    fault = fault_of_text(message["content"]) if message["content"].strip() else None
    return fault and f"content: {fault}"


def chat_as_text(messages: Sequence[dict[str, Any]]) -> str:
    """A chat as JSON, which is a row's text. Parquet gives each message all fields that any has, as null."""
    kept = [{key: value for key, value in message.items() if value is not None} for message in messages]
    return json.dumps(kept, ensure_ascii=False)
