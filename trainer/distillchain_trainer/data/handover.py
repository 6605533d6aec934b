"""Rows in a file, for the other processes of a node: one of them has fetched, checked and parsed the data."""

from __future__ import annotations

import json
from array import array
from pathlib import Path
from typing import Any

from distillchain_trainer.data.split import Split, TaskData


def write_task_data(path: Path, data: TaskData) -> None:
    """All splits as JSON."""
    splits = {name: _to_json(split) for name, split in data.splits.items()}
    path.write_text(json.dumps({"revision": data.revision, "splits": splits}), encoding="ascii")


def read_task_data(path: Path) -> TaskData:
    """What `write_task_data` wrote."""
    found = json.loads(path.read_text(encoding="ascii"))
    splits = {name: _from_json(name, split) for name, split in found["splits"].items()}
    return TaskData(splits["train"], splits["validation"], splits.get("test"), found["revision"])


def _to_json(split: Split) -> dict[str, Any]:
    return {
        "texts": split.texts,
        "targets": split.targets,
        "keys": b"".join(split.keys).hex(),
        "place_prefix": split.place_prefix,
        "numbers": split.numbers.tolist(),
    }


def _from_json(name: str, split: dict[str, Any]) -> Split:
    keys, rows = bytes.fromhex(split["keys"]), len(split["texts"])
    size = len(keys) // rows if rows else 0
    return Split(
        name,
        texts=[tuple(texts) for texts in split["texts"]],
        targets=split["targets"],
        keys=[keys[start : start + size] for start in range(0, len(keys), size or 1)],
        place_prefix=split["place_prefix"],
        numbers=array("I", split["numbers"]),
    )
