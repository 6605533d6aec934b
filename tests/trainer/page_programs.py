"""Runs the program with which a how-to page uses a student."""

from __future__ import annotations

import re

import pytest

from docs.blocks import blocks


def printed_by_the_program_of(page: str, checkpoint: str, *, text: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What the program of docs/`page`.md prints last, for this checkpoint and this text."""
    (block,) = blocks("python", page=f"docs/{page}.md")
    program, paths = re.subn(
        r'^CHECKPOINT = ".*"$', f"CHECKPOINT = {checkpoint.removeprefix('file://')!r}", block.text, flags=re.MULTILINE
    )
    program, texts = re.subn(r'\b(classify|tokenizer)\("[^"]+"', lambda call: f"{call[1]}({text!r}", program)
    assert (paths, texts) == (1, 1), program
    exec(program, {})
    return capsys.readouterr().out.strip().splitlines()[-1]
