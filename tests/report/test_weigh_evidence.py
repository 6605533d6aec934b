"""The verdict from committed students: what is compared, what is left out, and why."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from chain_builders import a_document
from distillchain_api.evidence_vertices import without_failed
from distillchain_api.graph import Plan, build_plan
from distillchain_api.layout import attempt_prefix, manifest_key
from distillchain_api.resource.spec import parse_chain
from distillchain_api.wire.answer import TERMINATION_BYTES, Committed, parse_answer
from distillchain_api.wire.evidence import EvidenceDocument
from distillchain_report.evidence.paired import difference
from distillchain_report.load import WantedStage, load_stages
from distillchain_report.section import Section
from distillchain_report.sections import section_of
from distillchain_report.seed_runs import seed_runs
from distillchain_report.side_by_side import Entrant, compare
from distillchain_report.weigh_evidence import NothingToCompare, weigh
from distillchain_store.errors import CheckpointCorrupt
from distillchain_store.folder import FileStore
from distillchain_trainer.launch.termination import encode_answer
from report.plans import commit_stages
from report.stores import Relay, report_of, wanted_of, write_relay

PARAMETERS = defaultdict(lambda: 4_400_000, teacher=110_000_000)
LATER = "2026-01-01T13:00:00Z"


def a_plan(*, on: str = "Last", seeds: int = 2, stages: tuple[str, ...] = ("mini", "tiny"), **evidence: float) -> Plan:
    asked = {"stages": on, "seeds": seeds, **evidence}
    return build_plan(parse_chain(a_document(stages=stages, evidence=asked)))


def commit(folder: Path, plan: Plan, accuracies: Mapping[str, float], *, rows: int = 200, only: str = "") -> FileStore:
    """Commits all students, or those whose name starts with `only`; 0.8 is the accuracy of the others."""
    students = [vertex for vertex in plan.vertices if not vertex.is_verdict and vertex.name.startswith(only)]
    known = defaultdict(lambda: 0.8, teacher=0.93) | accuracies
    commit_stages(folder, students, known, parameters=PARAMETERS, rows=rows)
    return FileStore(f"file://{folder}")


def verdict_on(store: FileStore, plan: Plan, *, failed: tuple[str, ...] = ()) -> EvidenceDocument:
    return weigh(store, without_failed(plan.evidence[-1], set(failed)).work_order, made_at=LATER)


def digest_of(plan: Plan, name: str) -> str:
    found = plan.stage(name)
    assert found is not None
    return found.digest


def test_differences_are_the_chain_minus_each_control_corrected_for_both(tmp_path: Path):
    plan = a_plan()
    store = commit(tmp_path, plan, {"tiny": 0.9, "tiny-s2": 0.88, "tiny-direct-s1": 0.7, "tiny-direct-s2": 0.72})

    found = verdict_on(store, plan).last

    section: Section[object] = section_of(plan.chain.spec.task.to_document())
    runs = []
    for names in (("tiny", "tiny-s2"), ("tiny-direct-s1", "tiny-direct-s2")):
        loaded = load_stages(store, [WantedStage(name, digest_of(plan, name)) for name in names])
        runs.append(seed_runs(loaded, "accuracy", section))
    own, direct = runs
    assert own is not None
    assert direct is not None
    want = difference(own, direct, comparisons=2)
    control = found.controls[0]
    assert (control.control, control.difference, control.low, control.high, control.p_value, control.detectable) == (
        "Direct", want.value, want.low, want.high, want.p_value, want.detectable,
    )  # fmt: skip
    assert found.metric == pytest.approx(0.89)
    # Two seeds that differ by two points tell little; but there is no accuracy above 1.
    assert (found.metric_low, found.metric_high) == (pytest.approx(0.75, abs=0.02), 1.0)
    assert control.difference == pytest.approx(0.18)
    assert (control.gpu_hours, control.steps) == (0.5, 900)


def test_an_interval_of_two_unequal_seeds_ends_where_accuracies_cannot_differ_more(tmp_path: Path):
    plan = a_plan()
    far = {"tiny": 0.95, "tiny-s2": 0.55, "tiny-direct-s1": 0.9, "tiny-direct-s2": 0.5}

    found = verdict_on(commit(tmp_path, plan, far), plan).last

    direct = found.controls[0]
    assert (direct.difference, direct.low, direct.high) == (pytest.approx(0.05), -1.0, 1.0)
    assert direct.detectable > 1
    assert found.outcome == "Undecided"


def test_a_comparison_of_two_models_on_three_rows_ends_where_accuracies_cannot_differ_more(tmp_path: Path):
    relay = Relay(names=["mini"], accuracies=[0.9, 0.7], rows=3)
    write_relay(tmp_path, relay)
    report = report_of(tmp_path, relay)
    (stage,) = load_stages(FileStore(f"file://{tmp_path}"), wanted_of(relay))

    _, second = compare([Entrant("one", report, stage), Entrant("other", report, stage)]).models

    assert second.difference is not None
    assert (second.difference.low, second.difference.high) == (-1.0, 1.0)


@pytest.mark.parametrize("stated, want", [({}, 0.005), ({"smallestGain": 0.02}, 0.02)])
def test_the_smallest_gain_is_that_of_the_spec_or_half_a_point(tmp_path: Path, stated: dict[str, float], want: float):
    plan = a_plan(**stated)
    assert verdict_on(commit(tmp_path, plan, {}), plan).last.smallest_gain == want


def test_every_stage_is_judged_and_the_last_one_is_that_of_the_chain(tmp_path: Path):
    plan = a_plan(on="Every")
    document = verdict_on(commit(tmp_path, plan, {}), plan)
    assert [(stage.stage, len(stage.controls)) for stage in document.stages] == [("mini", 1), ("tiny", 2)]
    assert document.last.stage == "tiny"


def test_failed_controls_are_left_out_with_a_sentence(tmp_path: Path):
    plan = a_plan()
    store = commit(tmp_path, plan, {})

    document = verdict_on(store, plan, failed=("tiny-direct-s1",))

    assert [control.control for control in document.last.controls] == ["FromRoot"]
    assert document.missing == ["tiny-direct-s1 failed"]


def test_a_control_without_its_predictions_is_left_out_with_the_reason(tmp_path: Path):
    plan = a_plan()
    store = commit(tmp_path, plan, {})
    lost = tmp_path / attempt_prefix(digest_of(plan, "tiny-direct-s2"), "a1") / "results"
    for path in lost.iterdir():
        path.unlink()

    document = verdict_on(store, plan)

    assert [control.control for control in document.last.controls] == ["FromRoot"]
    assert document.missing == [
        "Direct of tiny: not compared, because predictions are missing or altered: tiny-direct-s2"
    ]


def test_students_of_other_validation_rows_are_not_compared(tmp_path: Path):
    plan = a_plan()
    commit(tmp_path, plan, {})
    store = commit(tmp_path, plan, {}, rows=201, only="tiny-direct")

    document = verdict_on(store, plan)

    assert [control.control for control in document.last.controls] == ["FromRoot"]
    assert document.missing == [
        "Direct of tiny: not compared, because its students were measured on different validation rows; restore the "
        "file, or give the new one another URI"
    ]


def edit_manifests(folder: Path, plan: Plan, names: list[str], edit: Callable[[Any], None]) -> None:
    for name in names:
        path = folder / manifest_key(digest_of(plan, name))
        manifest = json.loads(path.read_text())
        edit(manifest)
        path.write_text(json.dumps(manifest))


def other_rows(manifest: Any) -> None:
    manifest["data"]["train"]["sha256"] = "f" * 64


def other_unlabelled_rows(manifest: Any) -> None:
    manifest["data"]["transfer"] = {"rows": 9, "sha256": "f" * 64}


def other_teacher(manifest: Any) -> None:
    manifest["teacher"]["revision"] = "another"


@pytest.mark.parametrize(
    ("names", "edit", "reason"),
    [
        (["tiny-direct-s1", "tiny-direct-s2"], other_rows,
         "Direct of tiny: not compared, because tiny-direct-s1, tiny-direct-s2 and tiny have other training rows; "
         "restore the file, or give the new one another URI"),
        (["tiny-direct-s2"], other_unlabelled_rows, "Direct of tiny: not compared, because tiny-direct-s2 and tiny have"),
        (["tiny-from-root-s2"], other_teacher,
         "FromRoot of tiny: not compared, because the teacher of tiny-from-root-s2 is not the chain's root teacher as "
         "it is now"),
        # Of both, so that the students of the control agree.
        (["tiny-from-root-s1", "tiny-from-root-s2"], other_teacher, "FromRoot of tiny: not compared, because the teacher"),
    ],
)  # fmt: skip
def test_a_control_with_other_inputs_is_left_out_with_the_reason(
    tmp_path: Path, names: list[str], edit: Callable[[Any], None], reason: str
):
    plan = a_plan()
    store = commit(tmp_path, plan, {})
    edit_manifests(tmp_path, plan, names, edit)

    document = verdict_on(store, plan)

    (other,) = {"Direct", "FromRoot"} - {reason.partition(" ")[0]}
    assert [control.control for control in document.last.controls] == [other]
    assert len(document.missing) == 1
    assert document.missing[0].startswith(reason)


@pytest.mark.parametrize(
    ("edit", "reason"), [(other_rows, "have other training rows"), (other_teacher, "were taught by different weights")]
)
def test_seeds_of_the_chain_with_other_inputs_are_not_compared(
    tmp_path: Path, edit: Callable[[Any], None], reason: str
):
    plan = a_plan()
    store = commit(tmp_path, plan, {})
    edit_manifests(tmp_path, plan, ["tiny-s2"], edit)

    with pytest.raises(NothingToCompare, match=f"not compared, because tiny-s2 and tiny {reason}"):
        verdict_on(store, plan)


def test_nothing_to_compare_is_a_fault_with_all_reasons(tmp_path: Path):
    plan = a_plan()
    commit(tmp_path, plan, {})
    store = commit(tmp_path, plan, {}, rows=201, only="tiny-s2")

    with pytest.raises(NothingToCompare, match="tiny cannot be compared: tiny: not compared, because its students"):
        verdict_on(store, plan)


def test_an_earlier_stage_does_not_take_the_place_of_the_last_one(tmp_path: Path):
    plan = a_plan(on="Every")
    commit(tmp_path, plan, {"mini": 0.95, "mini-s2": 0.95})
    store = commit(tmp_path, plan, {}, rows=201, only="tiny-s2")

    with pytest.raises(NothingToCompare) as found:
        verdict_on(store, plan)
    message = str(found.value)
    assert message.startswith("tiny cannot be compared: tiny: not compared, because its students were measured on")
    assert "; mini is WorthIt: " in message


@pytest.mark.parametrize(
    "name, remedy",
    [
        ("tiny-s2", "try again (distillchain retry, or run without a cluster)"),
        ("tiny", "delete the chain and apply it again, and the stage"),
    ],
)
def test_a_student_that_is_not_committed_is_named(tmp_path: Path, name: str, remedy: str):
    plan = a_plan()
    store = commit(tmp_path, plan, {})
    key = manifest_key(digest_of(plan, name))
    (tmp_path / key).unlink()

    with pytest.raises(CheckpointCorrupt) as found:
        verdict_on(store, plan)
    assert str(found.value).startswith(f"{name}: {store.uri}/{key} is missing; {remedy}")


def test_the_answer_of_a_long_verdict_fits_and_keeps_the_last_stage(tmp_path: Path):
    plan = a_plan(on="Every", stages=tuple(f"stage-with-a-long-name-{number}" for number in range(16)))
    document = verdict_on(commit(tmp_path, plan, {}, rows=50), plan)
    summary = document.summary().model_copy(update={"missing": ["a reason " * 100] * 3})
    student = load_stages(FileStore(f"file://{tmp_path}"), [WantedStage("last", document.students[-1].digest)])[
        0
    ].manifest
    assert student is not None
    answer = Committed(
        stage="evidence",
        digest=document.digest,
        attempt="a1",
        checkpoint=f"s3://bucket/{'folder/' * 40}evidence.json",
        reused=False,
        pretrained=True,
        student=student.student.summary(),
        elapsed_s=2.0,
        examples_per_second=0.0,
        evidence=summary,
    )
    assert len(answer.to_json().encode()) > TERMINATION_BYTES

    message = encode_answer(answer)

    assert len(message) <= TERMINATION_BYTES
    found = parse_answer(message.decode())
    assert isinstance(found, Committed)
    assert found.evidence is not None
    assert (found.evidence.last, found.evidence.controls) == (summary.last, summary.controls)
    kept = found.evidence.others
    assert 0 < len(kept) < 15
    assert kept == summary.others[-len(kept) :]
