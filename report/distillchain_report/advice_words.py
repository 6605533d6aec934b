"""The advice in words: one sentence, and what to run next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from distillchain_api.metrics import Metric
from distillchain_api.resource.stage import TEACHER_STAGE
from distillchain_report import words
from distillchain_report.advice_model import Action, Advice, OtherRoute, RouteOutcome, StepFacts
from distillchain_report.evidence.verdict import OUT_OF_REACH, interval_text

ROOT_NAME = TEACHER_STAGE
FIRST_SEEDS = 3
"""Seeds of each route to start with where there are not two yet; how many decide is known only then."""


def route_words(stages: Sequence[str]) -> str:
    """`teacher -> mini -> tiny`."""
    return " -> ".join(stages)


def explain(advice: Advice, metric: Metric) -> Advice:
    """The advice with its sentence and the runs that would decide."""
    first = next(iter(advice.other_routes), None)
    names = _listed(advice.stages)
    last = advice.steps[-1].student
    runs: list[str] = []
    if advice.candidate is not None:
        sentence, runs = _about_candidate(advice, metric)
    elif advice.action in (Action.DROP, Action.ADD) and first:
        verb = "Drop" if advice.action is Action.DROP else "Add"
        sentence = f"{verb} {names}: {route_words(first.stages)} is {_beside(first, metric)}."
    elif advice.action is Action.RUN:
        undecided = next((each for each in advice.other_routes if each.outcome is RouteOutcome.UNDECIDED), None)
        sentence, runs = _about_undecided(undecided, names, last, metric) if undecided else _about_nothing(advice)
    elif first:
        others = _routes(advice.other_routes)
        sentence = f"Keep the steps: the chain is better than {others} {_difference(first, metric)}."
    else:
        sentence = (
            f"Keep the chain: no other route to {last} is committed, and no step certainly loses enough "
            f"{metric.display_name} to be worth splitting."
        )
    return advice.model_copy(update={"sentence": sentence, "runs": runs})


def _about_candidate(advice: Advice, metric: Metric) -> tuple[str, list[str]]:
    candidate = advice.candidate
    assert candidate is not None
    step = next(step for step in advice.steps if step.student == candidate.before)
    model = f" Its student could be that of {candidate.found}." if candidate.found else ""
    sentence = (
        f"Try a step before {step.student}: {step.teacher} -> {step.student} loses most "
        f"({_loss(step, metric)}) and shrinks {words.factor(step.compression)}; a student of about "
        f"{words.count(candidate.parameters)} parameters would halve that.{model} No run in this store shows yet "
        "whether the step would pay."
    )
    student = candidate.student or f"<a student of about {words.count(candidate.parameters)} parameters>"
    runs = [f"add to spec.stages before {step.student}: {{name: between, student: {_inline(student)}}}"]
    return sentence, runs


def _about_undecided(route: OtherRoute, names: str, last: str, metric: Metric) -> tuple[str, list[str]]:
    question = f"Undecided whether {names} {'help' if ' and ' in names else 'helps'}"
    if route.covers_seeds:
        reason = f"{_difference(route, metric)}, and {_remedy(route)}"
    else:
        reason = (
            f"{_difference(route, metric)} for other rows, but the chain has "
            f"{words.plural(route.seeds_of_chain, 'seed')} and the other route {route.seeds}; two of each are needed "
            "to tell the route from luck"
        )
    sentence = f"{question}: {route_words(route.stages)} {reason}."
    seeds = max(route.seeds_to_decide or FIRST_SEEDS, FIRST_SEEDS)
    if route.covers_seeds and route.seeds_to_decide is None:
        return sentence, []  # more rows or nothing; there is no run to name
    return sentence, [
        f"train {last} with {seeds} seeds at the end of this chain and of {_listed(route.chains)}: "
        f"--set spec.stages[{last}].training.seed=1, and so on"
    ]


def _about_nothing(advice: Advice) -> tuple[str, list[str]]:
    last = advice.steps[-1].student
    sentence = (
        f"Undecided whether {_listed(advice.stages)} {'helps' if len(advice.stages) == 1 else 'help'}: this store has "
        f"no {last} that the root teacher taught itself."
    )
    return sentence, [f"--set 'spec.evidence={{controls: [FromRoot, Direct], seeds: {FIRST_SEEDS}}}'"]


def _beside(route: OtherRoute, metric: Metric) -> str:
    better = "better" if route.outcome is RouteOutcome.WORSE else "as good"
    return f"{better} {_difference(route, metric)}"


def _difference(route: OtherRoute, metric: Metric) -> str:
    found = route.difference
    assert found.low is not None
    assert found.high is not None
    return f"({interval_text(found.value, found.low, found.high, metric)})"


def _remedy(route: OtherRoute) -> str:
    seeds, rows = route.seeds_to_decide, route.rows_to_decide
    parts = [f"{seeds} seeds"] if seeds else []
    parts += [f"{rows:,} validation rows"] if rows else []
    if not parts:
        return OUT_OF_REACH
    return f"about {' or '.join(parts)} would decide"


def _routes(routes: Sequence[OtherRoute]) -> str:
    if len(routes) == 1:
        return route_words(routes[0].stages)
    return f"each of {len(routes)} other routes, of which {route_words(routes[0].stages)} comes closest"


def _loss(step: StepFacts, metric: Metric) -> str:
    assert step.loss is not None
    assert step.loss.low is not None
    assert step.loss.high is not None
    return interval_text(-step.loss.value, -step.loss.high, -step.loss.low, metric)


def _listed(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1] if names else "")))


def _inline(value: Any) -> str:
    """A value as YAML in flow style."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_inline(inner)}" for key, inner in value.items()) + "}"
    return str(value)
