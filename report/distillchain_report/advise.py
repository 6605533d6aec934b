"""Reads what advice on a chain needs from its store."""

from __future__ import annotations

from collections.abc import Sequence

from distillchain_api.graph import Plan
from distillchain_api.metrics import default_smallest_gain
from distillchain_report.advice import Question, Runs, build_advice
from distillchain_report.advice_model import Advice
from distillchain_report.comparable import why_left_out
from distillchain_report.load import ListableStore, LoadedStage, WantedStage, load_stages
from distillchain_report.routes import Route, group_runs, has_same_goal, has_same_rows, read_routes
from distillchain_report.sections import section_of


class NothingCommitted(Exception):
    """The store has no committed step of the chain."""


def advise_on(store: ListableStore, plan: Plan, *, smallest_gain: float | None = None) -> Advice:
    """Advice on the committed part of a chain.

    Args:
        smallest_gain: None: that of the chain.
    Raises: NothingCommitted; StoreError if the store itself fails.
    """
    routes, missing = read_routes(store)
    own = _longest(plan, routes)
    if own is None:
        unused = "".join(f"; not used: {sentence}" for sentence in missing)
        raise NothingCommitted(f"no committed step in {store.uri}; run the chain first{unused}")
    last, chain = own.last, plan.chain
    same_rows = [route for route in routes if has_same_rows(route.last, last)]
    rivals, reasons = _rivals(same_rows, own)
    missing += reasons
    others = [
        group
        for group in group_runs(rivals)
        # A step with another recipe is another question than whether the step helps.
        if group[0].key != own.key and group[0].shares_recipes_with(own)
    ]
    metric = chain.spec.task.deciding_metric
    if smallest_gain is None and chain.spec.evidence is not None:
        smallest_gain = chain.spec.evidence.smallest_gain
    if smallest_gain is None:
        smallest_gain = default_smallest_gain(metric, last.student.metrics.validation[metric.name])
    return build_advice(
        f"{chain.metadata.namespace}/{chain.name}",
        _loaded(store, [own.prefix(place) for place in range(len(own.manifests))][-len(own.steps) :]),
        # The chain's own run is the first one.
        _runs(store, [own, *(route for route in rivals if route.key == own.key and route.last.digest != last.digest)]),
        [_runs(store, group) for group in others],
        question=Question(metric=metric, section=section_of(last.recipe.get("task", {})), smallest_gain=smallest_gain),
        students_in_store=[route for route in same_rows if route.root == own.root],
        missing=missing,
    )


def _rivals(routes: Sequence[Route], own: Route) -> tuple[list[Route], list[str]]:
    """The routes to the same student from the same root teacher, or from labels alone; why others are left out."""
    rivals, reasons = [], []
    for route in routes:
        if has_same_goal(route.last, own.last) and (route.root == own.root or route.last.teacher is None):
            if (reason := why_left_out(route, own.last)) is None:
                rivals.append(route)
            elif route.last.digest != own.last.digest:
                reasons.append(reason)
    return rivals, reasons


def _longest(plan: Plan, routes: Sequence[Route]) -> Route | None:
    """The route to the last committed step of the chain."""
    found: dict[str, Route] = {route.last.digest: route for route in routes if route.steps}
    longest = next((found[stage.digest] for stage in reversed(plan.students) if stage.digest in found), None)
    if longest is None:
        return None
    # Another chain may have trained a stage under another name.
    names: dict[str, str] = {stage.digest: stage.name for stage in plan.students}
    return Route(
        tuple(
            manifest.model_copy(update={"stage": names.get(manifest.digest, manifest.stage)})
            for manifest in longest.manifests
        )
    )


def _runs(store: ListableStore, routes: Sequence[Route]) -> Runs:
    return Runs(routes, _loaded(store, routes))


def _loaded(store: ListableStore, routes: Sequence[Route]) -> list[LoadedStage]:
    """The last stage of each route."""
    return load_stages(store, [WantedStage(route.last.stage, route.last.digest) for route in routes])
