"""What the launcher gives to a rank and gets back, beside torch's standard variables."""

from __future__ import annotations

from pathlib import Path

from distillchain_api.base import Document
from distillchain_api.wire.answer import Answer
from distillchain_trainer.launch.ending import Ending

RANK_ENV = "DISTILLCHAIN_RANK"
"""Environment variable with a RankStart as JSON. The launcher sets it; it is no setting for users."""


class RankStart(Document):
    """What a rank needs besides the work order."""

    launcher: int
    """Its process id."""
    attempt: str
    """The same for all ranks of all nodes."""
    folder: str
    """For files in the making; shared by the ranks of a node."""
    end: str
    """File for the RankEnd."""
    warnings: list[str] = []
    """What the launcher has found; it has logged them."""
    fitting_rows: int | None = None
    """Rows of a micro-batch, after memory was short for more; None: it was not."""


class RankEnd(Document):
    """How a rank ended."""

    answer: Answer
    exit_code: int
    peers_lost: str = ""
    """As in Ending."""
    smaller_rows: int | None = None
    """As in Ending."""

    @classmethod
    def of(cls, ending: Ending) -> RankEnd:
        """The document of an ending."""
        return cls(
            answer=ending.answer,
            exit_code=ending.exit_code,
            peers_lost=ending.peers_lost,
            smaller_rows=ending.smaller_rows,
        )

    @property
    def ending(self) -> Ending:
        """The ending of the rank as a process."""
        return Ending(self.answer, self.exit_code, self.peers_lost, self.smaller_rows)

    def write(self, path: Path) -> None:
        """Writes the file whole or not at all: a rank may be killed at any moment."""
        unfinished = path.with_name(f"{path.name}.part")
        unfinished.write_text(self.to_json(), encoding="utf-8", errors="replace")
        unfinished.replace(path)
