"""The pass of a teacher over the rows of a stage as a Job of its own: where it runs. It decides no result."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from distillchain_api.base import Document
from distillchain_api.faults import Fault, expected
from distillchain_api.resource.job import QueueName
from distillchain_api.resource.parallelism import Parallelism
from distillchain_api.resource.pod import PodTemplate
from distillchain_api.resource.resources import Resources
from distillchain_api.values import Text

SUFFIX = "-pass"
"""`<stage>-pass` is the name of the vertex in plan and status."""


class TeacherPass(Document):
    """Where the Job of the pass runs. What is empty is as in the stage."""

    image: Text | None = None
    """Trainer image; empty: the stage's."""
    resources: Resources | None = None
    """Resources of the container `trainer`; replaces the stage's as a whole."""
    pod: PodTemplate | None = None
    """Replaces the stage's pod as a whole."""
    queue_name: QueueName | None = None
    """LocalQueue of the pass; empty: the stage's."""
    parallelism: Parallelism | None = None
    """Replaces the stage's parallelism as a whole; `sharding: Full` divides a teacher that is too large for one GPU."""


def pass_faults(stages: Mapping[str, TeacherPass | None]) -> Iterator[Fault]:
    """Stages whose name is that of another stage's pass.

    Not a CEL rule: comparing all names with each other exceeds what the API server allows a rule to cost.

    Args:
        stages: the pass of each stage by its name, in order.
    """
    passes = {f"{name}{SUFFIX}": index for index, (name, where) in enumerate(stages.items()) if where is not None}
    for index, name in enumerate(stages):
        if name in passes:
            remedy = f"stages[{passes[name]}].teacherPass has this name in status: rename the stage"
            yield Fault(f"stages[{index}].name", expected(name, "another name", remedy))
