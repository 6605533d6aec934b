"""The short real sentences of examples/llm, which are our own, as rows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SENTENCES = Path(__file__).parents[2] / "examples/llm/sentences"


def _texts(name: str) -> list[str]:
    return [json.loads(line)["text"] for line in (SENTENCES / name).read_text(encoding="utf-8").splitlines()]


TRAIN, HELD_OUT = _texts("train.jsonl"), _texts("validation.jsonl")


def as_text(sentence: str) -> dict[str, Any]:
    """The sentence as a plain text."""
    return {"text": sentence}


def as_completion(sentence: str) -> dict[str, Any]:
    """Its first three words as a prompt, the rest as the completion."""
    words = sentence.split(" ")
    return {"prompt": " ".join(words[:3]), "completion": " " + " ".join(words[3:])}


def as_chat(sentence: str) -> dict[str, Any]:
    """A request to go on, and the answer."""
    row = as_completion(sentence)
    return {
        "messages": [
            {"role": "user", "content": f"Go on: {row['prompt']}"},
            {"role": "assistant", "content": row["completion"].strip()},
        ]
    }


def write_jsonl(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
