"""Rows for the other processes of a node: one has fetched, checked and parsed the data, and all map its files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from distillchain_trainer.data.split import Split, TaskData, joined
from distillchain_trainer.data.split_writer import open_split, write_split


def write_task_data(path: Path, data: TaskData) -> None:
    """Where the rows of all splits are. Rows that are not in files yet are written beside `path`."""
    splits = data.splits | ({} if data.transfer is None else {"transfer": data.transfer})
    places = {name: _place(path.parent / f"{name}-handed-over", split) for name, split in splits.items()}
    path.write_text(json.dumps({"revision": data.revision, "splits": places}), encoding="utf-8")


def read_task_data(path: Path) -> TaskData:
    """What `write_task_data` wrote."""
    found = json.loads(path.read_text(encoding="utf-8"))
    splits = {name: _open(name, place) for name, place in found["splits"].items()}
    return TaskData(
        splits["train"], splits["validation"], splits.get("test"), found["revision"], splits.get("transfer")
    )


def _place(folder: Path, split: Split) -> dict[str, Any]:
    if split.parts:
        parts = [_place(folder / str(index), part) for index, part in enumerate(split.parts)]
        return {"parts": parts, "left_out": split.left_out, "revision": split.revision}
    return {
        "folder": str(write_split(folder, split).folder),
        "left_out": split.left_out,
        "revision": split.revision,
    }


def _open(name: str, place: dict[str, Any]) -> Split:
    if "parts" in place:
        split = joined(name, [_open(name, part) for part in place["parts"]])
    else:
        split = open_split(Path(place["folder"]))
    return replace(split, left_out=place["left_out"], revision=place["revision"])
