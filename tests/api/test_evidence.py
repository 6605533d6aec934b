"""`spec.evidence`: which vertices it adds to a plan, and what they share."""

from __future__ import annotations

import copy

from hypothesis import given
from hypothesis import strategies as st

from api.evidence_plans import a_plan, a_stage
from bad_chains import GOOD
from bad_chains.base import language_chain
from distillchain_api.digests import distill_digest, labels_digest
from distillchain_api.evidence_vertices import without_failed
from distillchain_api.graph import Plan, PlannedStage, build_plan
from distillchain_api.plan_check import check_plan
from distillchain_api.resource.spec import parse_chain
from distillchain_api.wire.evidence import EvidenceOrder
from distillchain_api.wire.work_order import WorkOrder


def vertex(plan: Plan, name: str) -> PlannedStage:
    found = plan.stage(name)
    assert found is not None, f"{name} is not in {[each.name for each in plan.vertices]}"
    return found


def order_of(plan: Plan) -> EvidenceOrder:
    assert plan.verdict is not None
    assert plan.verdict.work_order.evidence is not None
    return plan.verdict.work_order.evidence


def test_a_chain_without_evidence_has_no_vertex_beside_it():
    plan = a_plan(None)
    assert plan.evidence == ()
    assert plan.verdict is None
    assert [stage.digest for stage in plan.stages] == [stage.digest for stage in a_plan({}).stages]


def test_controls_and_seeds_are_vertices_beside_the_last_stage():
    plan = a_plan({"seeds": 2})

    assert [(each.name, each.needs) for each in plan.evidence[:-1]] == [
        ("tiny-direct-s1", ()),
        ("tiny-from-root-s1", ()),
        ("tiny-s2", ("mini",)),
        ("tiny-direct-s2", ()),
        ("tiny-from-root-s2", ()),
    ]
    (stage,) = order_of(plan).stages
    assert [(each.name, each.control, each.seed) for each in stage.students] == [
        ("tiny", None, 42),
        ("tiny-s2", None, 43),
        ("tiny-direct-s1", "Direct", 42),
        ("tiny-direct-s2", "Direct", 43),
        ("tiny-from-root-s1", "FromRoot", 42),
        ("tiny-from-root-s2", "FromRoot", 43),
    ]


def test_digests_of_controls_are_pinned():
    """Committed controls in users' buckets have these names, and other chains find them by it."""
    plan = a_plan({"seeds": 2})
    assert [vertex(plan, name).digest[:16] for name in ("tiny-direct-s1", "tiny-from-root-s1", "tiny-s2")] == [
        "ce02167b184ee2ef", "42eaf260a97b7232", "4b9916b9e08e1be7",
    ]  # fmt: skip


def test_a_control_has_the_digest_of_an_equal_stage_of_another_chain():
    plan = a_plan({"seeds": 2})
    from_root = a_plan(None, stages=[a_stage("other", student={"model": "hf://org/tiny"})]).stages[0]
    fine_tuned = a_plan(None, teacher={"model": "hf://org/tiny", "fineTune": {}}).stages[0]

    assert vertex(plan, "tiny-from-root-s1").digest == from_root.digest
    assert vertex(plan, "tiny-direct-s1").digest == fine_tuned.digest
    seed = {"seed": 43}
    other_seed = a_plan(None, stages=[a_stage("mini"), a_stage("tiny", training=seed)]).stages[1]
    assert vertex(plan, "tiny-s2").digest == other_seed.digest


def test_direct_depends_on_no_teacher():
    plan = a_plan({"seeds": 2})
    other = a_plan({"seeds": 2}, teacher={"model": "hf://org/another"}, stages=[a_stage("big"), a_stage("tiny")])

    assert vertex(plan, "tiny-direct-s1").digest == vertex(other, "tiny-direct-s1").digest
    assert vertex(plan, "tiny-direct-s1").work_order.teacher is None
    assert vertex(plan, "tiny-from-root-s1").digest != vertex(other, "tiny-from-root-s1").digest


def test_unlabelled_text_is_part_of_direct_so_that_it_trains_for_as_many_steps():
    task = copy.deepcopy(GOOD["spec"]["task"])
    task["transfer"] = {"uri": "s3://data/more", "files": ["more.txt"]}
    with_text = vertex(a_plan({}, task=task), "tiny-direct-s1")

    assert "transfer" in with_text.work_order.task.to_document()
    assert with_text.digest != vertex(a_plan({}), "tiny-direct-s1").digest


def test_controls_have_no_gate_and_no_export():
    plan = a_plan(
        {},
        template={"export": {"onnx": {}}},
        teacher={"model": "hf://org/teacher", "fineTune": {}, "export": {"onnx": {}}},
        stages=[a_stage("mini"), a_stage("tiny", gate={"minMetric": 0.99})],
    )
    for beside in plan.evidence:
        order = beside.work_order
        assert (order.gate.min_metric, order.export.name, order.final) == (None, None, False)
        assert order.teacher is None or order.teacher.gate is None
    assert vertex(plan, "tiny").work_order.gate.min_metric == 0.99


def test_a_fine_tuned_root_teaches_from_root():
    plan = a_plan({}, teacher={"model": "hf://org/teacher", "fineTune": {}})
    assert vertex(plan, "tiny-from-root-s1").needs == ("teacher",)
    assert vertex(plan, "tiny-direct-s1").needs == ()


def test_a_control_that_equals_a_stage_of_the_chain_is_that_stage():
    """tiny is the student of mini, and mini the same student taught by the root."""
    again = {"student": {"model": "hf://org/mini"}}
    plan = a_plan({"seeds": 2}, stages=[a_stage("mini"), a_stage("tiny", **again)])
    (stage,) = order_of(plan).stages

    assert [each.name for each in stage.students_of("FromRoot")] == ["mini", "tiny-from-root-s2"]
    assert "tiny-from-root-s1" not in [each.name for each in plan.vertices]


def test_every_stage_is_compared_with_what_differs_from_it():
    """The root teaches the first stage already, so it has no FromRoot."""
    plan = a_plan({"stages": "Every", "seeds": 2})

    mini, tiny = order_of(plan).stages
    assert (mini.judged_controls, tiny.judged_controls) == (["Direct"], ["Direct", "FromRoot"])
    assert order_of(plan).chain_digest == vertex(plan, "tiny").digest


def test_a_stage_that_learns_from_labels_alone_is_not_compared():
    plan = a_plan({"stages": "Every", "seeds": 2}, stages=[a_stage("mini"), a_stage("tiny", distillation={"alpha": 0})])
    assert [stage.stage for stage in order_of(plan).stages] == ["mini"]
    assert order_of(plan).chain_digest == vertex(plan, "tiny").digest


def test_the_root_takes_the_place_of_all_stages_among_several_teachers():
    teachers = [{"stage": "mini", "weight": 2}, {"stage": "teacher"}, {"model": "hf://org/other", "weight": 3}]
    plan = a_plan({}, stages=[a_stage("mini"), a_stage("tiny", teachers=teachers)])
    order = vertex(plan, "tiny-from-root-s1").work_order

    assert order.teacher is not None
    assert order.teacher.name == "teacher"
    assert [(other.teacher.name, other.share) for other in order.further_teachers] == [("hf://org/other", 0.5)]


def test_seeds_share_the_pass_of_their_teacher_and_the_root_has_its_own():
    stages = [a_stage("mini"), a_stage("tiny", teacherPass={"resources": {"limits": {"nvidia.com/gpu": 8}}})]
    plan = a_plan({"seeds": 3}, stages=stages)
    passes = [each.name for each in plan.vertices if each.is_pass]

    assert passes == ["tiny-pass", "tiny-from-root-pass"]
    assert vertex(plan, "tiny-s3").needs == ("mini", "tiny-pass")
    assert vertex(plan, "tiny-from-root-s2").needs == ("tiny-from-root-pass",)
    assert vertex(plan, "tiny-from-root-pass").gpus == 8


def test_the_root_s_pass_is_shared_with_the_first_stage():
    stages = [a_stage("mini", teacherPass={}), a_stage("tiny", teacherPass={})]
    plan = a_plan({}, stages=stages)

    assert vertex(plan, "tiny-from-root-s1").needs == ("mini-pass",)


def test_a_stage_with_a_loss_on_hidden_states_has_controls():
    hidden = {"alpha": 0.0, "hidden": {"objective": "HiddenMSE"}}
    plan = a_plan({}, stages=[a_stage("mini"), a_stage("tiny", distillation=hidden)])
    check_plan(plan)
    assert vertex(plan, "tiny-direct-s1").work_order.distillation is None
    from_root = vertex(plan, "tiny-from-root-s1").work_order.distillation
    assert from_root is not None
    assert from_root.hidden is not None


def test_a_language_model_and_an_adapter_have_controls():
    document = copy.deepcopy(GOOD)
    language_chain(document["spec"], {"text": ["text"]}, train="train.jsonl")
    document["spec"]["stages"][1]["student"]["lora"] = {"rank": 4}
    document["spec"]["evidence"] = {}
    plan = build_plan(parse_chain(document))
    check_plan(plan)
    lora = vertex(plan, "tiny-direct-s1").work_order.student.lora
    assert lora is not None
    assert lora.rank == 4


def test_the_verdict_asks_for_no_gpu():
    pod = {"spec": {"containers": [{"name": "trainer", "resources": {"limits": {"nvidia.com/gpu": "1"}}}]}}
    plan = a_plan({}, template={"pod": pod, "parallelism": {"processesPerNode": 1}})
    assert plan.verdict is not None
    assert plan.verdict.resources == {"requests": {"cpu": "500m", "memory": "1Gi"}}
    assert plan.verdict.gpus == 0
    assert plan.verdict.work_order.parallelism.processes == 1


def test_a_work_order_with_evidence_is_read_as_it_was_written():
    verdict = a_plan({}).verdict
    assert verdict is not None
    assert WorkOrder.parse(verdict.work_order.to_json()) == verdict.work_order


def test_a_verdict_without_a_failed_control_is_another_vertex():
    verdict = a_plan({"seeds": 3}).verdict
    assert verdict is not None
    left = without_failed(verdict, {"tiny-direct-s2", "unknown"})

    order = left.work_order.evidence
    assert order is not None
    assert order.missing == ["tiny-direct-s2"]
    assert left.digest == left.work_order.digest != verdict.digest
    assert "tiny-direct-s2" not in left.needs
    assert order.stages[0].judged_controls == ["Direct", "FromRoot"]
    assert without_failed(verdict, set()) is verdict
    fewer = without_failed(verdict, {"tiny-direct-s1", "tiny-direct-s2"}).work_order.evidence
    assert fewer is not None
    assert fewer.stages[0].judged_controls == ["FromRoot"], "one seed has no spread"
    none = without_failed(verdict, {"tiny-s2", "tiny-s3"}).work_order.evidence
    assert none is not None
    assert not none.can_be_judged


def test_layers_of_layers_can_be_taught_by_the_root():
    layers = [
        a_stage("six", student={"fromTeacher": {"layers": 6}}),
        a_stage("two", student={"fromTeacher": {"layers": 2}}),
    ]
    plan = a_plan({"controls": ["FromRoot"], "seeds": 2}, stages=layers)
    check_plan(plan)
    assert [each.name for each in plan.evidence] == ["two-from-root-s1", "two-s2", "two-from-root-s2", "evidence"]


def test_seeds_wrap_around_at_the_largest_seed():
    plan = a_plan({"seeds": 2}, template={"training": {"seed": 2**31 - 1}})
    assert vertex(plan, "tiny-s2").work_order.training.seed == 0


@st.composite
def chains(draw: st.DrawFn) -> Plan:
    """Plans with one to four stages and any evidence that the types accept."""
    count = draw(st.integers(1, 4))
    stages = [
        a_stage(
            f"s{number}" if number % 2 else f"t{number}",
            # Two stages may be the same student, so that digests meet.
            student={"model": f"hf://org/student{draw(st.integers(1, 2))}"},
            distillation={"alpha": draw(st.sampled_from([0.0, 0.5, 1.0]))},
            **({"teacherPass": {}} if draw(st.booleans()) else {}),
        )
        for number in range(count)
    ]
    controls = draw(st.sampled_from([["Direct"], ["Direct", "FromRoot"], ["FromRoot", "Direct"]]))
    evidence = {
        "controls": controls,
        "seeds": draw(st.integers(2, 5)),
        "stages": draw(st.sampled_from(["Last", "Every"])),
    }
    teacher = {"model": "hf://org/teacher", **({"fineTune": {}} if draw(st.booleans()) else {})}
    return a_plan(evidence, stages=stages, teacher=teacher)


@given(chains())
def test_every_vertex_is_after_those_that_it_needs_and_no_student_is_trained_twice(plan: Plan):
    names, digests = [each.name for each in plan.vertices], [each.digest for each in plan.vertices]
    for place, each in enumerate(plan.vertices):
        assert set(each.needs) <= set(names[:place])
        assert each.is_evidence == (each in plan.evidence)
        assert each.digest == each.work_order.digest
        assert (each.priority > 0) == each.is_evidence
    assert len(set(digests[len(plan.stages) :])) == len(plan.evidence)
    assert not set(digests[len(plan.stages) :]) & set(digests[: len(plan.stages)])
    if plan.verdict is None:
        return
    by_name = dict(zip(names, digests, strict=True))
    for stage in order_of(plan).stages:
        own = stage.students_of(None)
        assert (own[0].name, own[0].digest) == (stage.stage, by_name[stage.stage])
        for control in stage.judged_controls:
            assert len(stage.students_of(control)) == len(own)
            assert not {each.digest for each in stage.students_of(control)} & {each.digest for each in own}
        assert all(by_name[each.name] == each.digest for each in stage.students)


@given(chains())
def test_digests_of_students_are_those_that_stages_have(plan: Plan):
    """By the two functions that name every student, from what the work order says alone."""
    for each in plan.evidence:
        order = each.work_order
        if each.is_pass or each.is_verdict:
            continue
        if order.teacher is None:
            assert each.digest == labels_digest(order.task, student=order.student, training=order.training)
            continue
        assert order.distillation is not None
        assert each.digest == distill_digest(
            order.task,
            teacher=order.teacher.digest or order.teacher.model or "",
            student=order.student,
            training=order.training,
            distillation=order.distillation,
        )
