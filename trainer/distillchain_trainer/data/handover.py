"""Rows in a file, for the other processes of a node: one of them has fetched, checked and parsed the data."""

from __future__ import annotations

import json
from array import array
from dataclasses import replace
from pathlib import Path
from typing import Any

from distillchain_trainer.data.split import Split, TaskData, joined


def write_task_data(path: Path, data: TaskData) -> None:
    """All splits as JSON."""
    splits = {name: _to_json(split) for name, split in data.splits.items()}
    if data.transfer is not None:
        splits["transfer"] = _to_json(data.transfer)
    path.write_text(json.dumps({"revision": data.revision, "splits": splits}), encoding="ascii")


def read_task_data(path: Path) -> TaskData:
    """What `write_task_data` wrote."""
    found = json.loads(path.read_text(encoding="ascii"))
    splits = {name: _from_json(name, split) for name, split in found["splits"].items()}
    return TaskData(
        splits["train"], splits["validation"], splits.get("test"), found["revision"], splits.get("transfer")
    )


def _to_json(split: Split) -> dict[str, Any]:
    if split.parts:
        return {"parts": [_to_json(part) for part in split.parts], "left_out": split.left_out}
    return {
        "texts": split.texts,
        "targets": split.targets,
        "keys": b"".join(split.keys).hex(),
        "place_prefix": split.place_prefix,
        "numbers": split.numbers.tolist(),
        "left_out": split.left_out,
    }


def _from_json(name: str, split: dict[str, Any]) -> Split:
    if "parts" in split:
        return replace(joined(name, [_from_json(name, part) for part in split["parts"]]), left_out=split["left_out"])
    keys, rows = bytes.fromhex(split["keys"]), len(split["texts"])
    size = len(keys) // rows if rows else 0
    return Split(
        name,
        texts=[tuple(texts) for texts in split["texts"]],
        targets=split["targets"],
        keys=[keys[start : start + size] for start in range(0, len(keys), size or 1)],
        place_prefix=split["place_prefix"],
        numbers=array("I", split["numbers"]),
        left_out=split["left_out"],
    )
