"""Advice on the steps of a chain as data: `distillchain advise -o json` prints it. Shares are from 0 to 1."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from distillchain_api.base import Document
from distillchain_report.model import Estimate, MetricFacts


class Action(StrEnum):
    """What to do next."""

    DROP = "Drop"
    ADD = "Add"
    KEEP = "Keep"
    RUN = "Run"
    """Nothing is decided; the advice says which run would decide most."""


class RouteOutcome(StrEnum):
    """The chain against another route to the same student."""

    BETTER = "Better"
    """The chain certainly gains, and as measured at least the smallest gain that matters."""
    AS_GOOD = "AsGood"
    """The chain gains less than the smallest gain that matters."""
    WORSE = "Worse"
    UNDECIDED = "Undecided"


class StepFacts(Document):
    """A committed step of the chain."""

    teacher: str
    student: str
    teacher_metric: float | None = None
    student_metric: float
    loss: Estimate | None = None
    """How much worse the student is than its teacher, on the same rows. The interval is for other rows, not for other
    seeds."""
    retention: float | None = None
    compression: float | None = None
    """Parameters of the teacher divided by those of the student."""
    gpu_hours: float
    hours: float


class OtherRoute(Document):
    """Another committed route to the chain's last student."""

    stages: list[str]
    """From the root teacher to the student; `labels` where it learned from labels alone."""
    chains: list[str]
    """The chains that trained it."""
    dropped: list[str]
    """Steps of the chain that it does not have."""
    added: list[str]
    """Its steps that the chain does not have."""
    seeds: int
    seeds_of_chain: int
    metric: float
    """Mean over its seeds."""
    difference: Estimate
    """The chain minus this route; the interval is for other rows and seeds if `coversSeeds`, else for other rows."""
    covers_seeds: bool
    detectable: float | None = None
    """The smallest difference that these rows and seeds would have found with a probability of 80 %."""
    outcome: RouteOutcome
    seeds_to_decide: int | None = None
    rows_to_decide: int | None = None
    hours: float
    """Wall hours of all its stages, with one seed."""
    gpu_hours: float


class Candidate(Document):
    """A student that a new step could have."""

    parameters: int
    """The number that would divide the shrinking evenly over two steps."""
    before: str
    """The step that would follow it."""
    found: str | None = None
    """A committed student of this store with a size in between, as `chain/stage`."""
    student: dict[str, Any] | None = None
    """Its `student`, to be copied into the chain."""


class Advice(Document):
    """What the store says about the steps of a chain."""

    advice: int = 1
    chain: str
    metric: MetricFacts
    action: Action
    stages: list[str]
    """The steps to drop or add; where a new step has no name yet, the step before which it belongs."""
    sentence: str
    smallest_gain: float
    steps: list[StepFacts]
    other_routes: list[OtherRoute]
    candidate: Candidate | None = None
    runs: list[str]
    """What to run next, as commands or changes of the chain; empty where nothing is undecided."""
    missing: list[str] = []
    """What could not be used, and why."""
