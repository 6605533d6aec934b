"""Which step of a chain to add or drop next, from the committed stages of its store.

Measurements answer two questions. Where is quality lost: each student beside its own teacher, on the same rows. Did a
step help: the chain's last student beside the same student at the end of other routes, by the mixed model of
evidence/paired.py. That model needs two seeds of both routes. With one seed, luck of the training cannot be told from
the route, so then nothing is decided.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from distillchain_api.metrics import Metric, retention
from distillchain_api.wire.manifest import Manifest
from distillchain_report.advice_model import Action, Advice, Candidate, OtherRoute, RouteOutcome, StepFacts
from distillchain_report.advice_words import ROOT_NAME, explain, route_words
from distillchain_report.commits import gpu_hours
from distillchain_report.evidence.paired import Difference, difference, row_interval
from distillchain_report.evidence.verdict import Gain
from distillchain_report.load import LoadedStage
from distillchain_report.model import Estimate, MetricFacts
from distillchain_report.routes import Route, learns_from_labels_alone
from distillchain_report.section import Section
from distillchain_report.seed_runs import contributions_of, have_same_rows, metric_of, row_unit, seed_runs

MEANINGFUL_COMPRESSION = 4.0
"""A step that shrinks its teacher less than this is not split: two steps would shrink it less than twice each."""


@dataclass(frozen=True)
class Runs:
    """The runs of one route.

    Attributes:
        routes: one for each seed.
        loaded: the last stage of each, with predictions.
    """

    routes: Sequence[Route]
    loaded: Sequence[LoadedStage]


@dataclass(frozen=True)
class Question:
    """How students are compared.

    Attributes:
        smallest_gain: the smallest gain that is worth a further step, in the metric's unit.
        comparisons: number of routes that the chain is compared with.
    """

    metric: Metric
    section: Section[Any]
    smallest_gain: float
    comparisons: int = 1


def build_advice(
    chain: str,
    stages: Sequence[LoadedStage],
    own: Runs,
    others: Sequence[Runs],
    *,
    question: Question,
    students_in_store: Sequence[Route] = (),
    missing: Sequence[str] = (),
) -> Advice:
    """Advice on a chain.

    Args:
        stages: its committed stages in order, with predictions; stage zero of a fine-tuned root teacher is left out.
        own: all runs of its route, one for each seed.
        others: other routes to the same student.
        students_in_store: with the same root teacher and rows, as candidates for a new step.
    """
    metric = question.metric
    question = replace(question, comparisons=max(1, len(others)))
    steps = [_step(stage, stages[place - 1] if place else None, question) for place, stage in enumerate(stages)]
    compared = [_compared(own, other, question) for other in others]
    routes = sorted((found for found in compared if found), key=_urgency)
    lost = [
        f"{route_words(other.routes[0].names)}: its predictions cannot be read, or are for other rows"
        for other, found in zip(others, compared, strict=True)
        if found is None
    ]
    advice = Advice(
        chain=chain,
        metric=MetricFacts.of(metric),
        action=Action.KEEP,
        stages=[],
        sentence="",
        smallest_gain=question.smallest_gain,
        steps=steps,
        other_routes=routes,
        runs=[],
        missing=[*missing, *lost],
    )
    return _decide(advice, stages, students_in_store, metric)


def _step(stage: LoadedStage, before: LoadedStage | None, question: Question) -> StepFacts:
    manifest, metric = stage.manifest, question.metric
    assert manifest is not None, "only committed stages are steps"
    teacher, value = manifest.teacher, metric_of(stage, question.metric.name)
    of_teacher = teacher.metrics.validation.get(metric.name) if teacher else None
    return StepFacts(
        teacher=before.wanted.name if before else ROOT_NAME,
        student=stage.wanted.name,
        teacher_metric=of_teacher,
        student_metric=value,
        loss=_loss(stage, of_teacher, value, question),
        retention=retention(value, of_teacher, metric) if of_teacher is not None else None,
        compression=teacher.parameters / manifest.student.parameters if teacher else None,
        hours=manifest.run.elapsed_s / 3600,
        gpu_hours=gpu_hours(manifest),
    )


def _loss(stage: LoadedStage, of_teacher: float | None, value: float, question: Question) -> Estimate | None:
    """How much worse the student is than its own teacher, with an interval if both predictions can be read."""
    if of_teacher is None:
        return None
    metric, section = question.metric, question.section
    loss = metric.worse_by(value, of_teacher)
    student, teacher = stage.answers.student, stage.answers.teacher
    if student is None or teacher is None or not section.has_same_rows(student, teacher):
        return Estimate(value=loss)
    ours, theirs = (section.contributions(metric.name, answers) for answers in (student, teacher))
    if ours is None or theirs is None:
        return Estimate(value=loss)
    ends = row_interval(theirs - ours if metric.higher_is_better else ours - theirs, loss, row_unit=row_unit(metric))
    return _estimate(loss, ends, metric)


def _estimate(value: float, ends: tuple[float, float], metric: Metric) -> Estimate:
    """A difference with the part of its interval that the metric allows."""
    low, high = metric.possible_differences(*ends)
    return Estimate(value=value, low=low, high=high)


def _compared(own: Runs, other: Runs, question: Question) -> OtherRoute | None:
    """The chain against another route; None where predictions are missing or of other rows."""
    metric, section = question.metric, question.section
    if not have_same_rows([*own.loaded, *other.loaded], section):
        return None
    first, second = (seed_runs(runs.loaded, metric.name, section) for runs in (own, other))
    values = [[metric_of(stage, metric.name) for stage in runs.loaded] for runs in (own, other)]
    means = [sum(each) / len(each) for each in values]
    found = None
    if first and second:
        found = difference(first, second, comparisons=question.comparisons, row_unit=row_unit(metric))
        shown = _estimate(found.value, (found.low, found.high), metric)
    else:
        parts = [contributions_of(runs.loaded[0], metric.name, section) for runs in (own, other)]
        if parts[0] is None or parts[1] is None:
            return None
        value = values[0][0] - values[1][0]
        shown = _estimate(value, row_interval(parts[0] - parts[1], value, row_unit=row_unit(metric)), metric)
    outcome = _outcome(found, question)
    seeds, rows = _remedy(found, question) if found and outcome is RouteOutcome.UNDECIDED else (None, None)
    chain, route = own.routes[0], other.routes[0]
    by_labels = learns_from_labels_alone(route.last)
    return OtherRoute(
        # Controls of spec.evidence have names of their own, but end with the same student.
        stages=["labels" if by_labels else ROOT_NAME, *([] if by_labels else route.names[:-1]), chain.last.stage],
        chains=list(dict.fromkeys(each.last.chain for each in other.routes)),
        dropped=[ROOT_NAME, *chain.names[:-1]] if by_labels else _without(chain, route),
        added=[] if by_labels else _without(route, chain),
        seeds=len(other.routes),
        seeds_of_chain=len(own.routes),
        metric=means[1],
        difference=shown,
        covers_seeds=found is not None,
        detectable=found.detectable if found else None,
        outcome=outcome,
        seeds_to_decide=seeds,
        rows_to_decide=rows,
        hours=sum(manifest.run.elapsed_s for manifest in _trained(route, by_labels=by_labels)) / 3600,
        gpu_hours=sum(gpu_hours(manifest) for manifest in _trained(route, by_labels=by_labels)),
    )


def _trained(route: Route, *, by_labels: bool) -> Sequence[Manifest]:
    """The stages that have to be trained for a student; one that learns from labels needs no other."""
    return [route.last] if by_labels else route.manifests


def _without(route: Route, other: Route) -> list[str]:
    """The names of the steps of `route` whose students `other` does not have."""
    return [
        step.stage for step, student in zip(route.steps, route.students, strict=True) if student not in other.students
    ]


def _outcome(found: Difference | None, question: Question) -> RouteOutcome:
    if found is None:
        return RouteOutcome.UNDECIDED
    gain = Gain.of(found, question.metric)
    if gain.high < 0:
        return RouteOutcome.WORSE
    if gain.high < question.smallest_gain:
        return RouteOutcome.AS_GOOD
    return RouteOutcome.BETTER if gain.pays(question.smallest_gain) else RouteOutcome.UNDECIDED


def _remedy(found: Difference, question: Question) -> tuple[int | None, int | None]:
    needed = Gain.of(found, question.metric).distance_to_decision(question.smallest_gain)
    return found.seeds_for(needed), found.rows_for(needed)


def _urgency(route: OtherRoute) -> tuple[int, int, float]:
    """Routes that the chain should follow first, then undecided ones, then those that the chain beats.

    If two are equal, the route with fewer stages comes first.
    """
    order = (RouteOutcome.WORSE, RouteOutcome.AS_GOOD, RouteOutcome.UNDECIDED, RouteOutcome.BETTER)
    return order.index(route.outcome), len(route.stages), abs(route.difference.value)


def _decide(advice: Advice, stages: Sequence[LoadedStage], students: Sequence[Route], metric: Metric) -> Advice:
    """Fills in what to do."""
    first = next(iter(advice.other_routes), None)
    inner = [step.student for step in advice.steps[:-1]]
    more: dict[str, Any] = {}
    # A longer route is only followed if it is better: an equal one would cost a step for nothing.
    if first and (first.outcome is RouteOutcome.WORSE or (first.outcome is RouteOutcome.AS_GOOD and first.dropped)):
        more = {"action": Action.DROP if first.dropped else Action.ADD, "stages": first.dropped or first.added}
    elif undecided := [route for route in advice.other_routes if route.outcome is RouteOutcome.UNDECIDED]:
        more = {"action": Action.RUN, "stages": undecided[0].dropped or undecided[0].added}
    elif inner and not _is_without(advice.other_routes, inner):
        more = {"action": Action.RUN, "stages": inner}
    # Where a longer route was measured and did not pay, another longer one is no good advice.
    elif not any(route.added for route in advice.other_routes) and (candidate := _candidate(advice, stages, students)):
        more = {"action": Action.ADD, "stages": [candidate.before], "candidate": candidate}
    return explain(advice.model_copy(update=more), metric)


def _is_without(routes: Sequence[OtherRoute], inner: Sequence[str]) -> bool:
    """Whether one of the routes goes straight from the root teacher to the student."""
    return any(route.stages[0] == ROOT_NAME and set(inner) <= set(route.dropped) for route in routes)


def _candidate(advice: Advice, stages: Sequence[LoadedStage], students: Sequence[Route]) -> Candidate | None:
    """A student between the two models of the step that loses most; None where no step loses quality for certain."""
    losing = [
        (step.loss.value, step, stage)
        for step, stage in zip(advice.steps, stages, strict=True)
        if step.loss and step.loss.low is not None and step.loss.low > 0
        if step.compression and step.compression >= MEANINGFUL_COMPRESSION
    ]
    if not losing:
        return None
    _, step, stage = max(losing, key=lambda each: each[0])
    assert stage.manifest is not None
    assert stage.manifest.teacher is not None
    small, large = stage.manifest.student.parameters, stage.manifest.teacher.parameters
    middle = math.sqrt(small * large)
    between = [route.last for route in students if 2 * small <= route.last.student.parameters <= large / 2]
    # `fromTeacher` means the layers of another teacher there.
    between = [manifest for manifest in between if manifest.recipe.get("student", {}).get("fromTeacher") is None]
    nearest = min(between, key=lambda each: abs(math.log(each.student.parameters / middle)), default=None)
    return Candidate(
        parameters=round(middle),
        before=step.student,
        found=f"{nearest.chain}/{nearest.stage}" if nearest else None,
        student=nearest.recipe["student"] if nearest else None,
    )
