"""What the trainer answers: the termination message at its end and progress lines on the way.

The kubelet keeps 4096 bytes of a termination message, and 12 KiB of those of all containers of a pod: with four or
more, each gets its share, and an answer may lose its last words.
"""

from __future__ import annotations

import bisect
import contextlib
import json
import posixpath
from typing import Annotated, Any, Literal, Self

from pydantic import Field, TypeAdapter, ValidationError, model_validator
from pydantic_core import from_json

from distillchain_api import deep_json
from distillchain_api.base import MAX_INT64, Record
from distillchain_api.failures import FailureClass
from distillchain_api.wire.evidence import EvidenceSummary
from distillchain_api.wire.export import ExportSummary
from distillchain_api.wire.manifest import ModelSummary, SelectedEpoch
from distillchain_api.wire.plain_text import values_on_one_line
from distillchain_api.wire.work_order import Digest

TERMINATION_BYTES = 4096  # the kubelet's own limit of a termination message
MESSAGE_BYTES = 2048  # leaves room for the frame and JSON escapes of the sentence


class ExportFailure(Record):
    """Why an export of a committed stage could not be made."""

    failure_class: FailureClass
    message: str


class FurtherTeacherSummary(Record):
    """One of several teachers of a stage, beside the first one."""

    name: str
    share: float
    """Its share of the mean of all teachers."""
    metric: float
    """`task.metric` on validation."""


class Committed(Record):
    """The stage is committed: by this pod, or found so (`reused`)."""

    outcome: Literal["Committed"] = "Committed"
    stage: str
    digest: Digest
    attempt: str
    """Whose checkpoint was committed."""
    checkpoint: str
    reused: bool
    pretrained: bool
    student: ModelSummary
    teacher: ModelSummary | None = None
    further_teachers: list[FurtherTeacherSummary] = []
    selected: SelectedEpoch | None = None
    elapsed_s: float
    examples_per_second: float
    exports: list[ExportSummary] = []
    """What the work order asks to export."""
    export_failure: ExportFailure | None = None
    """Why it is missing in `exports`. The stage is committed all the same."""
    evidence: EvidenceSummary | None = None
    """The verdict on a chain and its controls; `checkpoint` is its document, `student` the chain's last one."""
    warnings: list[str] = []
    """Of the manifest, as many as the termination message holds. Last, so that a message that is cut loses them."""

    @model_validator(mode="after")
    def _whole_uris(self) -> Self:
        # Not `model_copy`: a validator has to return the value itself, and a list may be changed in a frozen one.
        self.exports[:] = [
            found.model_copy(update={"uri": _joined(self.checkpoint, found.uri)}) for found in self.exports
        ]
        return self

    def with_short_uris(self) -> Committed:
        """The same answer with URIs of exports relative to the checkpoint; reading it makes them whole again."""
        short = [found.model_copy(update={"uri": _relative(found.uri, self.checkpoint)}) for found in self.exports]
        return self.model_copy(update={"exports": short})


def _relative(uri: str, to: str) -> str:
    """`../../exports/a/model.onnx`: a URI in the same store, seen from the folder `to`."""
    return posixpath.relpath(uri.partition("://")[2], to.partition("://")[2])


def _joined(folder: str, uri: str) -> str:
    """A URI that `_relative` has made short, whole again."""
    scheme, _, path = folder.partition("://")
    return uri if "://" in uri else f"{scheme}://{posixpath.normpath(posixpath.join(path, uri))}"


class Failed(Record):
    """The stage failed, with a sentence that the user can act on."""

    outcome: Literal["Failed"] = "Failed"
    stage: str
    digest: str
    failure_class: FailureClass
    message: str


class Interrupted(Record):
    """Interrupted; the next attempt continues from `step`."""

    outcome: Literal["Interrupted"] = "Interrupted"
    stage: str
    digest: str
    step: int
    message: str


Answer = Annotated[Committed | Failed | Interrupted, Field(discriminator="outcome")]
_ANSWER: TypeAdapter[Committed | Failed | Interrupted] = TypeAdapter(Answer)


def parse_answer(text: str) -> Committed | Failed | Interrupted | None:
    """The answer in a termination message; None for any other text, such as the last words of a crash.

    Fields of a later release are ignored. Texts are on one line, because they go to logs, terminals and tables. An
    answer that the kubelet has cut counts if all is left that it needs.
    """
    try:
        document = values_on_one_line(_loads(text))
        # From JSON: in strict mode pydantic does not accept a text for an enum from Python values.
        return _ANSWER.validate_json(json.dumps(document))
    except ValueError:
        return None


def _loads(text: str) -> Any:
    with contextlib.suppress(ValueError):
        return deep_json.loads(text)
    cut = from_json(text, allow_partial="trailing-strings")
    # They are last, so what is before them is whole.
    if not isinstance(cut, dict) or {"warnings", "message"}.isdisjoint(cut):
        raise ValueError("no answer, or one that was cut too early")
    return cut


def fit(message: str, limit_bytes: int = MESSAGE_BYTES) -> str:
    """`message` cut to `limit_bytes` of JSON on a whole character."""
    message = message.encode(errors="replace").decode()  # a file name may hold what UTF-8 cannot

    def size_bytes(text: str) -> int:
        return len(json.dumps(text, ensure_ascii=False).encode()) - len('""')

    if size_bytes(message) <= limit_bytes:
        return message
    # A character takes one to six bytes in JSON, so the length is searched for; 3 bytes are for the dots.
    kept = bisect.bisect_right(range(len(message)), limit_bytes - 3, key=lambda end: size_bytes(message[:end])) - 1
    return message[:kept] + "..."


ProgressPhase = Literal[
    "FetchTeacher", "MeasureTeacher", "MeasureStudent", "TeacherLogits", "Train", "Evaluate", "Upload", "Export"
]


class Progress(Record):
    """One line on stdout."""

    kind: Literal["progress"] = "progress"
    stage: str
    phase: ProgressPhase
    step: Annotated[int, Field(ge=0, le=MAX_INT64)]
    of: Annotated[int, Field(ge=0, le=MAX_INT64)]
    """0: not known yet."""
    epoch: float | None = None
    loss: float | None = None
    examples_per_second: float | None = None
    eta_s: Annotated[float, Field(ge=0, le=1e15)] | None = None
    """Estimated seconds to the end of this phase."""


def parse_progress(line: str) -> Progress | None:
    """The progress in one line of a trainer's log; None for any other line."""
    # Most lines are log lines, for which the parser would build an error each.
    if not line.startswith("{"):
        return None
    try:
        return Progress.model_validate_json(line)
    except ValidationError:
        return None
