"""Advice on the steps of a chain, from stores in which several chains share their stages."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from chain_builders import a_document
from distillchain_api.graph import Plan, build_plan
from distillchain_api.resource.spec import parse_chain
from distillchain_report.advice_model import Action, Advice, RouteOutcome
from distillchain_report.advise import NothingCommitted, advise_on
from distillchain_store.folder import FileStore
from report.controlled import a_controlled_plan, commit_controlled
from report.plans import commit_stages

PARAMETERS = {"teacher": 110_000_000, "mini": 11_000_000, "tiny": 4_400_000, "femto": 250_000}


def a_plan(names: Sequence[str], *, seed: int = 42, alpha: float = 1.0, chain: str = "relay") -> Plan:
    """A chain of these students; `seed` and `alpha` are those of the last stage."""
    document = a_document(chain, stages=names)
    document["spec"]["stages"][-1] |= {"training": {"seed": seed}, "distillation": {"alpha": alpha}}
    return build_plan(parse_chain(document))


def commit(folder: Path, models: str, **parts: int | float | str) -> None:
    """Commits a chain such as `mini=0.91 tiny=0.88`, whose root teacher has an accuracy of 0.93."""
    accuracies = {name: float(value) for name, value in (model.split("=") for model in models.split())}
    plan = a_plan(list(accuracies), **parts)
    commit_stages(folder, plan.stages, {"teacher": 0.93, **accuracies}, parameters=PARAMETERS)


def commit_seeds(folder: Path, before: str, last: str, *accuracies: float, **parts: int | float | str) -> None:
    """Commits one chain for each accuracy of the last student."""
    for seed, accuracy in enumerate(accuracies, start=42):
        commit(folder, f"{before} {last}={accuracy}", seed=seed, **parts)


def advice_on(folder: Path, *names: str, smallest_gain: float | None = None) -> Advice:
    return advise_on(FileStore(f"file://{folder}"), a_plan(names), smallest_gain=smallest_gain)


def test_a_step_that_gains_nothing_is_dropped(tmp_path: Path):
    commit_seeds(tmp_path, "mini=0.91", "tiny", 0.850, 0.852, 0.851)
    commit_seeds(tmp_path, "", "tiny", 0.880, 0.882, 0.881, chain="short")

    advice = advice_on(tmp_path, "mini", "tiny")

    assert (advice.action, advice.stages, advice.runs) == (Action.DROP, ["mini"], [])
    assert advice.sentence.startswith("Drop mini: teacher -> tiny is better (difference -3.0 points, 95 % interval -")
    (route,) = advice.other_routes
    assert (route.outcome, route.seeds, route.seeds_of_chain, route.chains) == (
        RouteOutcome.WORSE,
        3,
        3,
        ["default/short"],
    )
    assert route.covers_seeds
    assert route.detectable
    # One stage of half an hour, where the chain has two.
    assert (route.hours, route.gpu_hours) == (0.5, 0.5)


def test_a_gain_below_the_smallest_one_that_matters_is_no_reason_for_a_step(tmp_path: Path):
    commit_seeds(tmp_path, "mini=0.91", "tiny", 0.870, 0.872, 0.871)
    commit_seeds(tmp_path, "", "tiny", 0.871, 0.870, 0.872)

    advice = advice_on(tmp_path, "mini", "tiny", smallest_gain=0.05)

    assert (advice.action, advice.stages) == (Action.DROP, ["mini"])
    assert "teacher -> tiny is as good (difference" in advice.sentence


def test_a_certain_gain_that_is_measured_too_small_decides_nothing(tmp_path: Path):
    commit_seeds(tmp_path, "mini=0.93", "tiny", 0.920, 0.922, 0.921)
    commit_seeds(tmp_path, "", "tiny", 0.850, 0.852, 0.851)

    (route,) = advice_on(tmp_path, "mini", "tiny", smallest_gain=0.075).other_routes

    assert route.difference.low
    assert route.difference.low > 0
    assert route.outcome is RouteOutcome.UNDECIDED


def test_the_interval_of_two_unequal_seeds_ends_where_accuracies_cannot_differ_more(tmp_path: Path):
    commit_seeds(tmp_path, "mini=0.93", "tiny", 0.920, 0.520)
    commit_seeds(tmp_path, "", "tiny", 0.900, 0.500)

    (route,) = advice_on(tmp_path, "mini", "tiny").other_routes

    assert (route.difference.low, route.difference.high, route.outcome) == (-1.0, 1.0, RouteOutcome.UNDECIDED)


def test_a_step_that_pays_is_kept(tmp_path: Path):
    commit_seeds(tmp_path, "mini=0.925", "tiny", 0.920, 0.922, 0.921)
    commit_seeds(tmp_path, "", "tiny", 0.850, 0.852, 0.851)

    advice = advice_on(tmp_path, "mini", "tiny")

    assert (advice.action, advice.stages, advice.runs) == (Action.KEEP, [], [])
    assert advice.sentence.startswith(
        "Keep the steps: the chain is better than teacher -> tiny (difference +7.0 points"
    )


def test_a_step_of_another_chain_that_pays_is_added(tmp_path: Path):
    commit_seeds(tmp_path, "", "tiny", 0.850, 0.852, 0.851)
    commit_seeds(tmp_path, "mini=0.91", "tiny", 0.900, 0.902, 0.901)

    advice = advice_on(tmp_path, "tiny")

    assert (advice.action, advice.stages) == (Action.ADD, ["mini"])
    assert advice.sentence.startswith("Add mini: teacher -> mini -> tiny is better (difference -5.0 points")


def test_labels_alone_are_a_route_without_any_teacher(tmp_path: Path):
    commit_seeds(tmp_path, "mini=0.91", "tiny", 0.850, 0.852, 0.851)
    commit_seeds(tmp_path, "", "tiny", 0.900, 0.902, 0.901, alpha=0.0)

    advice = advice_on(tmp_path, "mini", "tiny")

    assert (advice.action, advice.stages) == (Action.DROP, ["teacher", "mini"])
    assert advice.sentence.startswith("Drop teacher and mini: labels -> tiny is better (difference -5.0 points")


def test_one_seed_decides_nothing_and_the_advice_says_what_would(tmp_path: Path):
    commit(tmp_path, "mini=0.91 tiny=0.85")
    commit(tmp_path, "tiny=0.90", chain="short")

    advice = advice_on(tmp_path, "mini", "tiny")

    assert (advice.action, advice.stages) == (Action.RUN, ["mini"])
    assert advice.sentence.startswith(
        "Undecided whether mini helps: teacher -> tiny (difference -5.0 points, 95 % interval"
    )
    assert advice.sentence.endswith(
        "for other rows, but the chain has 1 seed and the other route 1; two of each are needed to tell the route from "
        "luck."
    )
    assert advice.runs == [
        "train tiny with 3 seeds at the end of this chain and of default/short: --set spec.stages[tiny].training.seed=1, "
        "and so on"
    ]
    assert not advice.other_routes[0].covers_seeds


def test_seeds_that_differ_too_much_are_undecided_with_the_number_that_would_decide(tmp_path: Path):
    commit_seeds(tmp_path, "mini=0.91", "tiny", 0.84, 0.87, 0.86)
    commit_seeds(tmp_path, "", "tiny", 0.83, 0.86, 0.84)

    advice = advice_on(tmp_path, "mini", "tiny")

    (route,) = advice.other_routes
    assert (advice.action, route.outcome) == (Action.RUN, RouteOutcome.UNDECIDED)
    assert route.seeds_to_decide
    assert f"and about {route.seeds_to_decide} seeds" in advice.sentence
    assert f"train tiny with {route.seeds_to_decide} seeds" in advice.runs[0]


def test_without_another_route_the_advice_is_to_measure_one(tmp_path: Path):
    commit(tmp_path, "mini=0.91 tiny=0.85 femto=0.80")

    advice = advice_on(tmp_path, "mini", "tiny", "femto")

    assert (advice.action, advice.stages) == (Action.RUN, ["mini", "tiny"])
    assert advice.sentence == (
        "Undecided whether mini and tiny help: this store has no femto that the root teacher taught itself."
    )
    assert advice.runs == ["--set 'spec.evidence={controls: [FromRoot, Direct], seeds: 3}'"]


def test_the_step_that_loses_most_is_split_by_a_student_of_the_store(tmp_path: Path):
    commit(tmp_path, "femto=0.80")
    commit(tmp_path, "tiny=0.88", chain="other")

    advice = advice_on(tmp_path, "femto")

    assert (advice.action, advice.stages) == (Action.ADD, ["femto"])
    assert advice.sentence.startswith(
        "Try a step before femto: teacher -> femto loses most (difference -13.0 points, 95 % interval -"
    )
    assert advice.sentence.endswith(
        "and shrinks 440×; a student of about 5.2 M parameters would halve that. Its student could be that of "
        "default/other/tiny. No run in this store shows yet whether the step would pay."
    )
    assert advice.candidate
    assert advice.candidate.student == {"model": "hf://org/tiny"}
    assert advice.runs == ["add to spec.stages before femto: {name: between, student: {model: hf://org/tiny}}"]


def test_loss_and_kept_share_of_each_step(tmp_path: Path):
    commit(tmp_path, "mini=0.91 tiny=0.85")

    mini, tiny = advice_on(tmp_path, "mini", "tiny").steps

    assert (mini.teacher, tiny.teacher, tiny.student) == ("teacher", "mini", "tiny")
    assert tiny.loss
    assert tiny.loss.value == pytest.approx(0.06)
    assert tiny.loss.low is not None
    assert 0 < tiny.loss.low < 0.06
    assert tiny.retention == pytest.approx(0.85 / 0.91)
    assert tiny.compression == 2.5


@pytest.mark.parametrize("change", ["rows", "root", "recipe"])
def test_what_differs_in_more_than_its_steps_is_not_compared(tmp_path: Path, change: str):
    commit_seeds(tmp_path, "mini=0.91", "tiny", 0.850, 0.852, 0.851)
    document = a_document("other", stages=["tiny"])
    if change == "root":
        document["spec"]["teacher"]["model"] = "hf://org/another"
    if change == "recipe":
        document["spec"]["template"]["training"] = {"epochs": 9}
    plan = build_plan(parse_chain(document))
    commit_stages(
        tmp_path,
        plan.stages,
        {"teacher": 0.93, "tiny": 0.9},
        parameters=PARAMETERS,
        rows=700 if change == "rows" else 800,
        root="another" if change == "root" else "teacher",
    )

    assert advice_on(tmp_path, "mini", "tiny").other_routes == []


def test_a_damaged_stage_is_named_and_the_others_are_used(tmp_path: Path):
    commit(tmp_path, "mini=0.91 tiny=0.85")
    commit(tmp_path, "mini=0.91 femto=0.80", chain="damaged")
    digest = a_plan(["mini", "femto"], chain="damaged").stages[1].digest
    (tmp_path / "stages" / digest / "manifest.json").write_text("{")

    advice = advice_on(tmp_path, "mini", "tiny")

    assert len(advice.steps) == 2
    assert len(advice.missing) == 1
    assert digest in advice.missing[0]


@pytest.mark.parametrize(
    ("part", "value", "reason"),
    [
        (("data", "train", "sha256"), "f" * 64, "has other training rows"),
        (("teacher", "revision"), "another", "mini was trained again after it had taught tiny"),
    ],
)
def test_routes_with_other_inputs_are_left_out_with_the_reason(
    tmp_path: Path, part: tuple[str, ...], value: str, reason: str
):
    commit_seeds(tmp_path, "mini=0.91", "tiny", 0.850, 0.852)
    digest = a_plan(["mini", "tiny"], seed=43).stages[-1].digest
    path = tmp_path / "stages" / digest / "manifest.json"
    manifest = json.loads(path.read_text())
    place = manifest
    for name in part[:-1]:
        place = place[name]
    place[part[-1]] = value
    path.write_text(json.dumps(manifest))

    advice = advice_on(tmp_path, "mini", "tiny")

    (sentence,) = advice.missing
    assert sentence.startswith(f"tiny of default/relay ({digest[:12]}) is not compared, because ")
    assert sentence.endswith(reason)


def test_a_chain_without_a_committed_step(tmp_path: Path):
    with pytest.raises(NothingCommitted, match="no committed step in file://"):
        advice_on(tmp_path, "mini", "tiny")


def test_controls_of_spec_evidence_are_routes(tmp_path: Path):
    plan = a_controlled_plan()
    store = commit_controlled(tmp_path, plan, chain=0.90, from_root=0.86, direct=0.80)

    advice = advise_on(store, plan)

    routes = {tuple(route.stages): (route.outcome, route.seeds, route.seeds_of_chain) for route in advice.other_routes}
    assert routes == {
        ("labels", "tiny"): (RouteOutcome.BETTER, 3, 3),
        ("teacher", "tiny"): (RouteOutcome.BETTER, 3, 3),
    }
    # The steps pay, so the next question is about the step that loses most.
    assert (advice.action, advice.stages, advice.missing) == (Action.ADD, ["mini"], [])


def test_the_smallest_gain_of_the_chain_is_used(tmp_path: Path):
    plan = a_controlled_plan(smallest_gain=0.2)
    store = commit_controlled(tmp_path, plan, chain=0.90, from_root=0.86, direct=0.80)

    advice = advise_on(store, plan)

    # Neither control is so much worse that two stages are worth it.
    assert advice.smallest_gain == 0.2
    assert {route.outcome for route in advice.other_routes} == {RouteOutcome.AS_GOOD}
