"""What the launchers of a group send each other: JSON documents, one per line.

A member sends Join, and gets Refused, or Begin when all nodes have joined. Then each side sends Alive now and then, a
member reports causes, and node 0 decides and announces the one that counts. If that is MemoryShort, a member sends
Ready when its ranks have ended, and gets Begin again. Ended comes before an orderly farewell.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, ValidationError

from distillchain_api.base import Document
from distillchain_trainer.launch.causes import Cause

VERSION = 2
MAX_LINE_BYTES = 65_536  # the longest message holds an answer of at most 4,096 bytes


class Join(Document):
    """A node asks to take part."""

    kind: Literal["Join"] = "Join"
    version: int = VERSION
    digest: str
    node: int
    nodes: int
    processes: int
    attempt: str

    def difference(self, other: Join) -> str:
        """What differs between this node's stage and that of another; empty: they belong together."""
        for name in ("version", "digest", "nodes", "processes"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                return f"{name}: got {str(theirs)[:70]}, expected {mine}"
        return "" if 0 < other.node < self.nodes else f"node: got {other.node}, expected 1 to {self.nodes - 1}"


class Refused(Document):
    """This node cannot take part."""

    kind: Literal["Refused"] = "Refused"
    message: str
    for_now: bool
    """The group before it is ending, so it is asked to try again."""


class Begin(Document):
    """All nodes have joined, or are ready again; start the ranks."""

    kind: Literal["Begin"] = "Begin"
    attempt: str


class Alive(Document):
    """Nothing has happened."""

    kind: Literal["Alive"] = "Alive"


class Report(Document):
    """Something has happened on this node."""

    kind: Literal["Report"] = "Report"
    cause: Cause


class End(Document):
    """All nodes end for this cause."""

    kind: Literal["End"] = "End"
    cause: Cause


class Ready(Document):
    """All ranks of this node have ended after memory was short, and it can start them again."""

    kind: Literal["Ready"] = "Ready"


class Ended(Document):
    """All ranks of this node have ended, and it closes the connection."""

    kind: Literal["Ended"] = "Ended"


Message = Join | Refused | Begin | Alive | Report | End | Ready | Ended
_MESSAGE: TypeAdapter[Message] = TypeAdapter(Annotated[Message, Field(discriminator="kind")])


class BadMessage(Exception):
    """A line that is no message of this protocol."""


def parse_message(line: bytes) -> Message:
    """Raises: BadMessage."""
    try:
        return _MESSAGE.validate_json(line)
    except ValidationError as error:
        raise BadMessage(f"got {line[:80]!r}, expected a message of a launcher") from error
