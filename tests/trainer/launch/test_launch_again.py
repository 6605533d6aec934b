"""Ranks that start again with smaller micro-batches, after memory was short. In the ranks, a few lines replace the stage."""

from __future__ import annotations

import json

import pytest

from distillchain_api.wire.answer import Committed, Interrupted
from trainer.launching import Nodes

pytestmark = pytest.mark.slow

SHORT = """
(shared / f"seen-{rank}-{fitting_rows}").write_text(json.dumps([attempt, sorted(warnings.sentences)]))
assert order.micro_batch_size is None, "what the user asks for stays"
if fitting_rows != 1:
    (folder / "left").touch()
    mark(f"wrote-{fitting_rows}")
    if rank == 1:
        wait_for(f"wrote-{fitting_rows}", 0)
        rows = {None: 8, 8: 3, 3: 1}[fitting_rows]
        raise errors.MicroBatchTooLarge("too little memory", rows=rows)
    time.sleep(600)
assert not list(folder.iterdir())
"""


def test_ranks_start_again_with_smaller_micro_batches_until_memory_suffices(nodes: Nodes):
    node = nodes.start(SHORT, variables={"DISTILLCHAIN_ATTEMPT": "pod"})

    code, answer = node.ends()

    assert (code, type(answer)) == (0, Committed), node.log
    attempts, warnings = zip(
        *(json.loads((node.shared / f"seen-0-{rows}").read_text()) for rows in (None, 8, 3, 1)), strict=True
    )
    assert [attempt.removeprefix(attempts[0]) for attempt in attempts] == ["", "-2", "-3", "-4"]
    assert warnings[0] == []
    assert warnings[3] == [
        "rank 1: too little memory; all processes have started again with microBatchSize 1; set it in the chain to avoid the restart"
    ]


TRACKER = """
import sys, time
from pathlib import Path
folder, seen, until = map(Path, sys.argv[1:])
end = time.monotonic() + 60
while time.monotonic() < end and not until.exists():
    folder.mkdir(parents=True, exist_ok=True)
    (folder / str(time.monotonic())).touch()
    seen.touch()
"""


def test_ranks_start_again_although_a_tracker_of_those_before_still_writes(nodes: Nodes):
    """It has a session of its own, so it is not killed with its rank, and has 20 s to close its run."""
    (nodes.root / "tracker.py").write_text(TRACKER)
    node = nodes.start(
        f"""
if fitting_rows is None:
    if rank == 1:
        import subprocess
        places = [folder / "tracking", shared / "tracks-1", shared / "again-0"]
        subprocess.Popen([sys.executable, {str(nodes.root / "tracker.py")!r}, *places], start_new_session=True)
        wait_for("tracks", 1)
        raise errors.MicroBatchTooLarge("too little memory", rows=8)
    time.sleep(600)
mark("again")
assert not list(folder.iterdir())
"""
    )

    code, answer = node.ends()

    assert (code, type(answer)) == (0, Committed), node.log


def test_a_stop_while_ranks_start_again_ends_with_75(nodes: Nodes):
    node = nodes.start(
        """
if fitting_rows is None and rank == 1:
    raise errors.MicroBatchTooLarge("too little memory", rows=8)
wait_for_stop(signals)
raise errors.StopRequested(3)
"""
    )
    node.until("cause=MemoryShort")

    node.stop()

    code, answer = node.ends()
    assert (code, type(answer)) == (75, Interrupted), node.log
